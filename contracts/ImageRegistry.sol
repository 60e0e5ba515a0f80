// SPDX-License-Identifier: Apache-2.0 OR MIT
pragma solidity 0.8.37;

/// @title Registry of the images that may run, decided by the votes of approvers.
/// @notice A node reads one storage word per image, proved against a finalized block
/// (docs/chain.md). It never calls this contract.
/// @dev Invariants:
/// - A record changes only when enough of the current approvers vote for exactly the same change.
/// - A revocation is final.
/// - Each change has the next sequence number.
/// - Votes of an earlier set of approvers do not count. Votes to approve from before the last change
///   of the record do not count either.
/// - There is no owner and no upgrade, and the contract cannot receive money.
contract ImageRegistry {
    uint8 public constant CLEAR = 1;
    uint8 public constant PROOF = 2;
    uint8 public constant REVOKED = 3;
    uint256 public constant MOST_APPROVERS = 64;

    /// @dev One word, packed from its lowest byte on. Nodes read it from storage, so neither the
    /// order of the members nor the slot of the mapping (0) may ever change.
    struct Record {
        uint8 status;
        uint64 since;
        uint64 notAfter;
        uint64 seq;
    }

    /// @notice Records, by the SHA-256 of the image's manifest.
    mapping(bytes32 => Record) public records;
    /// @notice Sequence number of the last change.
    uint64 public seq;
    /// @notice Number of the current set of approvers, counted from 1.
    uint64 public era;
    /// @notice Number of approvers that an approval, or a change of the approvers, needs.
    uint16 public quorum;
    /// @notice Number of approvers that a revocation needs: bad news needs weaker evidence.
    uint16 public revocationQuorum;
    /// @dev The era in which an account is an approver.
    mapping(address => uint64) private eraOf;
    address[] private list;
    mapping(bytes32 => mapping(address => bool)) private voted;
    mapping(bytes32 => uint16) private votes;

    event Voted(bytes32 indexed subject, address indexed approver, uint8 status, uint64 notAfter, uint16 votes, uint16 needed);
    event Changed(bytes32 indexed digest, uint8 status, uint64 notAfter, uint64 seq);
    event ApproversChanged(uint64 era, address[] approvers, uint16 quorum, uint16 revocationQuorum, uint64 seq);

    error NotAnApprover(address who);
    error RevocationIsFinal(bytes32 digest);
    error AlreadyVoted(address who);
    error NoSuchStatus(uint8 status);
    error ExpiresBeforeNow(uint64 notAfter, uint256 timestamp);
    error NoDigest();
    error NotASetOfApprovers();

    modifier onlyApprover() {
        if (!isApprover(msg.sender)) revert NotAnApprover(msg.sender);
        _;
    }

    constructor(address[] memory approvers_, uint16 quorum_, uint16 revocationQuorum_) {
        set(approvers_, quorum_, revocationQuorum_);
    }

    function isApprover(address who) public view returns (bool) {
        return eraOf[who] == era;
    }

    function approvers() external view returns (address[] memory) {
        return list;
    }

    /// @notice Votes to let an image run until `notAfter` (seconds since 1970).
    /// @param status CLEAR, or PROOF if the approver also saw a proof of how the image was built.
    function approve(bytes32 digest, uint8 status, uint64 notAfter) external onlyApprover {
        if (status != CLEAR && status != PROOF) revert NoSuchStatus(status);
        if (notAfter <= block.timestamp) revert ExpiresBeforeNow(notAfter, block.timestamp);
        vote(digest, status, notAfter, quorum);
    }

    /// @notice Votes to never let an image run again. The image need not have been approved.
    function revoke(bytes32 digest) external onlyApprover {
        vote(digest, REVOKED, 0, revocationQuorum);
    }

    /// @notice Votes to replace the approvers. The replacement voids all open votes.
    function setApprovers(address[] calldata approvers_, uint16 quorum_, uint16 revocationQuorum_) external onlyApprover {
        bytes32 subject = keccak256(abi.encode(approvers_, quorum_, revocationQuorum_));
        // The ballot contains the era, so a later vote for the same set is another ballot.
        if (!counted(keccak256(abi.encode("approvers", era, subject)), subject, 0, 0, quorum)) return;
        set(approvers_, quorum_, revocationQuorum_);
    }

    function vote(bytes32 digest, uint8 status, uint64 notAfter, uint16 needed) private {
        if (digest == 0) revert NoDigest();
        Record memory known = records[digest];
        if (known.status == REVOKED) revert RevocationIsFinal(digest);
        // A vote to revoke stays valid when the approval changes meanwhile.
        uint64 since = status == REVOKED ? 0 : known.seq;
        bytes32 ballot = keccak256(abi.encode("image", era, digest, status, notAfter, since));
        if (!counted(ballot, digest, status, notAfter, needed)) return;
        seq++;
        records[digest] = Record(status, uint64(block.timestamp), notAfter, seq);
        emit Changed(digest, status, notAfter, seq);
    }

    function counted(bytes32 ballot, bytes32 subject, uint8 status, uint64 notAfter, uint16 needed) private returns (bool) {
        if (voted[ballot][msg.sender]) revert AlreadyVoted(msg.sender);
        voted[ballot][msg.sender] = true;
        uint16 found = ++votes[ballot];
        emit Voted(subject, msg.sender, status, notAfter, found, needed);
        return found >= needed;
    }

    function set(address[] memory approvers_, uint16 quorum_, uint16 revocationQuorum_) private {
        uint256 count = approvers_.length;
        bool usable = quorum_ > 0 && quorum_ <= count && revocationQuorum_ > 0 && revocationQuorum_ <= quorum_;
        if (!usable || count > MOST_APPROVERS) revert NotASetOfApprovers();
        era++;
        for (uint256 n; n < count; n++) {
            if (approvers_[n] == address(0) || eraOf[approvers_[n]] == era) revert NotASetOfApprovers();
            eraOf[approvers_[n]] = era;
        }
        (list, quorum, revocationQuorum) = (approvers_, quorum_, revocationQuorum_);
        seq++;
        emit ApproversChanged(era, approvers_, quorum_, revocationQuorum_, seq);
    }
}
