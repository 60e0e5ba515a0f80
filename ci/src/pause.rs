//! The smallest possible module, which only waits. A recorded chain approves its digest, so its
//! bytes must never change.

/// Endless loop of `ppoll(NULL, 0, NULL, NULL)` for 64-bit ARM (arm64 system call 73).
const CODE: [u32; 7] = [
    0xd280_0000, // mov x0, #0
    0xd280_0001, // mov x1, #0
    0xd280_0002, // mov x2, #0
    0xd280_0003, // mov x3, #0
    0xd280_0928, // mov x8, #73
    0xd400_0001, // svc #0
    0x17ff_fffa, // b, back to the first instruction
];
const BASE: u64 = 0x40_0000;
const HEADERS: u64 = 64 + 56;

/// Returns an ELF file with one segment (System V ABI, chapters 4 and 5).
fn program() -> Vec<u8> {
    let code: Vec<u8> = CODE.iter().flat_map(|word| word.to_le_bytes()).collect();
    let size = HEADERS + code.len() as u64;
    let mut elf = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let mut put = |bytes: &[u8]| elf.extend(bytes);
    // ELF header: executable for AArch64, entry point, program headers, no sections.
    put(&2u16.to_le_bytes());
    put(&183u16.to_le_bytes());
    put(&1u32.to_le_bytes());
    [BASE + HEADERS, 64, 0].iter().for_each(|n: &u64| put(&n.to_le_bytes()));
    put(&0u32.to_le_bytes());
    [64u16, 56, 1, 64, 0, 0].iter().for_each(|n| put(&n.to_le_bytes()));
    // Program header: load the whole file, readable and executable.
    put(&1u32.to_le_bytes());
    put(&5u32.to_le_bytes());
    [0, BASE, BASE, size, size, 0x1_0000].iter().for_each(|n: &u64| put(&n.to_le_bytes()));
    put(&code);
    elf
}

/// Returns the module's archive and its digest.
pub fn image() -> (Vec<u8>, String) {
    let program = program();
    let image = oci::BuiltImage {
        architecture: "arm64",
        files: &[("pause", 0o755, &program)],
        folders: &[],
        entrypoint: &["/pause"],
        user: "65534:65534",
    };
    oci::build(&image).unwrap_or_else(|error| panic!("cannot build the image: {error}"))
}
