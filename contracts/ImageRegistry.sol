// SPDX-License-Identifier: Apache-2.0 OR MIT
pragma solidity 0.8.37;

/// @title Registry of the images that may run, decided by the votes of approvers.
/// @notice A node reads one storage word per image, proved against a finalized block
/// (docs/chain.md). It never calls this contract.
/// @dev Invariants:
/// - A record changes only when enough of the current approvers vote for exactly the same change.
/// - A revocation is final.
/// - Each change has the next sequence number.
/// - An approver has at most one open vote about an image, and one about the approvers. A new vote
///   replaces the open one, and the approver can withdraw it.
/// - A vote is open for at most VOTE_LIFETIME. Votes from before the last change of the approvers
///   are closed. Votes to approve from before the last change of the record are closed too.
/// - There is no owner and no upgrade, and the contract cannot receive money.
contract ImageRegistry {
    uint8 public constant CLEAR = 1;
    uint8 public constant PROOF = 2;
    uint8 public constant REVOKED = 3;
    /// @dev Status of a vote about the approvers. No record has it.
    uint8 private constant APPROVERS = 4;
    uint256 public constant MOST_APPROVERS = 64;
    uint64 public constant VOTE_LIFETIME = 30 days;

    /// @dev One word, packed from its lowest byte on. Nodes read it from storage, so neither the
    /// order of the members nor the slot of the mapping (0) may ever change.
    struct Record {
        uint8 status;
        uint64 since;
        uint64 notAfter;
        uint64 seq;
    }

    /// @dev One word. `time` is when the vote was cast, and `seq` the last change before it.
    struct Vote {
        uint8 status;
        uint64 notAfter;
        uint64 time;
        uint64 seq;
    }

    struct OpenVote {
        address approver;
        uint8 status;
        uint64 notAfter;
        uint64 time;
        bytes32 set;
    }

    /// @notice Records, by the SHA-256 of the image's manifest.
    mapping(bytes32 => Record) public records;
    /// @notice Sequence number of the last change.
    uint64 public seq;
    /// @notice Sequence number of the change that set the current approvers.
    uint64 public era;
    /// @notice Number of approvers that an approval, or a change of the approvers, needs.
    uint16 public quorum;
    /// @notice Number of approvers that a revocation needs: bad news needs weaker evidence.
    uint16 public revocationQuorum;
    /// @dev The era in which an account is an approver.
    mapping(address => uint64) private eraOf;
    address[] private list;
    /// @dev The newest vote of each approver, by digest. Digest 0 stands for the approvers.
    mapping(bytes32 => mapping(address => Vote)) private votes;
    /// @dev The set that an account's vote about the approvers is for.
    mapping(address => bytes32) private setOf;

    event Voted(bytes32 indexed digest, address indexed approver, uint8 status, uint64 notAfter, uint16 votes, uint16 needed);
    event VotedForApprovers(address indexed approver, address[] approvers, uint16 quorum, uint16 revocationQuorum, uint16 votes, uint16 needed);
    event Withdrawn(bytes32 indexed digest, address indexed approver);
    event Changed(bytes32 indexed digest, uint8 status, uint64 notAfter, uint64 seq);
    event ApproversChanged(uint64 era, address[] approvers, uint16 quorum, uint16 revocationQuorum, uint64 seq);

    error NotAnApprover(address who);
    error RevocationIsFinal(bytes32 digest);
    error AlreadyVoted(address who);
    error NoOpenVote(address who);
    error NoSuchStatus(uint8 status);
    error ExpiresBeforeNow(uint64 notAfter, uint256 timestamp);
    error TooLate(uint64 deadline, uint256 timestamp);
    error NoDigest();
    error NotASetOfApprovers();

    modifier onlyApprover() {
        if (!isApprover(msg.sender)) revert NotAnApprover(msg.sender);
        _;
    }

    /// @dev A signed transaction can be withheld and included much later, when its signer has
    /// another opinion. It counts only until its deadline.
    modifier before(uint64 deadline) {
        if (block.timestamp > deadline) revert TooLate(deadline, block.timestamp);
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

    /// @notice Returns each approver's open vote about an image; with digest 0, about the approvers.
    /// The status is 0 for an approver without an open vote.
    function openVotes(bytes32 digest) external view returns (OpenVote[] memory open) {
        Record memory known = records[digest];
        open = new OpenVote[](list.length);
        for (uint256 n; n < open.length; n++) {
            address one = list[n];
            open[n].approver = one;
            Vote memory newest = votes[digest][one];
            if (!isOpen(newest, known)) continue;
            bytes32 choice = digest == 0 ? setOf[one] : bytes32(0);
            open[n] = OpenVote(one, newest.status, newest.notAfter, newest.time, choice);
        }
    }

    /// @notice Votes to let an image run until `notAfter` (seconds since 1970).
    /// @param status CLEAR, or PROOF if the approver also saw a proof of how the image was built.
    /// @param deadline Last second since 1970 at which the vote can be cast.
    function approve(bytes32 digest, uint8 status, uint64 notAfter, uint64 deadline) external onlyApprover before(deadline) {
        if (status != CLEAR && status != PROOF) revert NoSuchStatus(status);
        if (notAfter <= block.timestamp) revert ExpiresBeforeNow(notAfter, block.timestamp);
        vote(digest, status, notAfter, quorum);
    }

    /// @notice Votes to never let an image run again. The image need not have been approved.
    /// @param deadline Last second since 1970 at which the vote can be cast.
    function revoke(bytes32 digest, uint64 deadline) external onlyApprover before(deadline) {
        vote(digest, REVOKED, 0, revocationQuorum);
    }

    /// @notice Votes to replace the approvers. The replacement closes all open votes.
    /// @param deadline Last second since 1970 at which the vote can be cast.
    function setApprovers(address[] calldata approvers_, uint16 quorum_, uint16 revocationQuorum_, uint64 deadline) external onlyApprover before(deadline) {
        bytes32 choice = keccak256(abi.encode(approvers_, quorum_, revocationQuorum_));
        uint16 found = cast(0, APPROVERS, 0, choice, quorum);
        emit VotedForApprovers(msg.sender, approvers_, quorum_, revocationQuorum_, found, quorum);
        if (found >= quorum) set(approvers_, quorum_, revocationQuorum_);
    }

    /// @notice Withdraws the sender's open vote about an image; with digest 0, about the approvers.
    function withdraw(bytes32 digest) external onlyApprover {
        if (!isOpen(votes[digest][msg.sender], records[digest])) revert NoOpenVote(msg.sender);
        delete votes[digest][msg.sender];
        emit Withdrawn(digest, msg.sender);
    }

    function vote(bytes32 digest, uint8 status, uint64 notAfter, uint16 needed) private {
        if (digest == 0) revert NoDigest();
        if (records[digest].status == REVOKED) revert RevocationIsFinal(digest);
        uint16 found = cast(digest, status, notAfter, 0, needed);
        emit Voted(digest, msg.sender, status, notAfter, found, needed);
        if (found < needed) return;
        seq++;
        records[digest] = Record(status, uint64(block.timestamp), notAfter, seq);
        emit Changed(digest, status, notAfter, seq);
    }

    /// @dev Replaces the sender's vote and returns the number of open votes for the same. The vote
    /// that completes the quorum is not stored, because the change closes it.
    function cast(bytes32 digest, uint8 status, uint64 notAfter, bytes32 choice, uint16 needed) private returns (uint16 found) {
        Record memory known = records[digest];
        uint256 count = list.length;
        found = 1;
        for (uint256 n; n < count; n++) {
            address one = list[n];
            Vote memory other = votes[digest][one];
            if (other.status != status || other.notAfter != notAfter || !isOpen(other, known)) continue;
            if (digest == 0 && setOf[one] != choice) continue;
            if (one == msg.sender) revert AlreadyVoted(one);
            found++;
        }
        if (found >= needed) {
            delete votes[digest][msg.sender];
            return found;
        }
        votes[digest][msg.sender] = Vote(status, notAfter, uint64(block.timestamp), seq);
        if (digest == 0) setOf[msg.sender] = choice;
    }

    /// @dev Reports whether a vote counts. `known` is the record that it is about.
    function isOpen(Vote memory one, Record memory known) private view returns (bool) {
        if (one.status == 0 || one.seq < era || known.status == REVOKED) return false;
        if (block.timestamp >= one.time + VOTE_LIFETIME) return false;
        // A vote to revoke stays open when the approval changes meanwhile.
        return one.status > PROOF || (one.seq >= known.seq && one.notAfter > block.timestamp);
    }

    function set(address[] memory approvers_, uint16 quorum_, uint16 revocationQuorum_) private {
        uint256 count = approvers_.length;
        bool usable = quorum_ > 0 && quorum_ <= count && revocationQuorum_ > 0 && revocationQuorum_ <= quorum_;
        if (!usable || count > MOST_APPROVERS) revert NotASetOfApprovers();
        seq++;
        era = seq;
        for (uint256 n; n < count; n++) {
            if (approvers_[n] == address(0) || eraOf[approvers_[n]] == era) revert NotASetOfApprovers();
            eraOf[approvers_[n]] = era;
        }
        (list, quorum, revocationQuorum) = (approvers_, quorum_, revocationQuorum_);
        emit ApproversChanged(era, approvers_, quorum_, revocationQuorum_, seq);
    }
}
