//! A small eBPF assembler: enough for one straight-line program with forward jumps.
//!
//! Instructions are written one method each, jumps go to labels, and `finish` fills in the distances.
//! Encoding after the kernel's `Documentation/bpf/standardization/instruction-set.rst` (RFC 9669).

/// One eBPF instruction.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Insn {
    code: u8,
    /// Destination register in the low half, source in the high half.
    regs: u8,
    off: i16,
    imm: i32,
}

const _: () = assert!(size_of::<Insn>() == 8);

/// A register. `R0` is the result, `R1`–`R5` arguments, `R6`–`R9` survive calls, `R10` the stack frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Reg {
    R0,
    R1,
    R2,
    R3,
    R4,
    R5,
    R6,
    R7,
    R8,
    R9,
    R10,
}

/// The width of a load or store.
#[derive(Clone, Copy, Debug)]
#[repr(u8)]
pub(crate) enum Width {
    Word = 0x00,
    Half = 0x08,
    Byte = 0x10,
    Double = 0x18,
}

/// When a jump is taken, comparing unsigned.
#[derive(Clone, Copy, Debug)]
#[repr(u8)]
pub(crate) enum If {
    Equal = 0x10,
    Greater = 0x20,
    NotEqual = 0x50,
    Less = 0xa0,
}

/// A place in the program that jumps can name before it exists.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Label(usize);

/// Helper functions of the kernel.
#[derive(Clone, Copy, Debug)]
#[repr(i32)]
pub(crate) enum Helper {
    MapLookup = 1,
    MapUpdate = 2,
    StoreBytes = 9,
    LoadBytes = 26,
    ChangeType = 32,
    PullData = 39,
    RedirectMap = 51,
    LoadBytesRelative = 68,
    SocketRelease = 86,
    SocketLookupTcp = 99,
    RingReserve = 131,
    RingSubmit = 132,
    RingDiscard = 133,
}

const LD_IMM64: u8 = 0x18;
const LDX_MEM: u8 = 0x61;
const ST_MEM: u8 = 0x62;
const STX_MEM: u8 = 0x63;
/// A word changed in one step; the operation stands where others have a number.
const STX_ATOMIC: u8 = 0xc3;
const ATOMIC_ADD: i32 = 0x00;
const ATOMIC_EXCHANGE: i32 = 0xe1;
const ALU64_IMM: u8 = 0x07;
const ALU64_REG: u8 = 0x0f;
const JMP_IMM: u8 = 0x05;
const JMP_REG: u8 = 0x0d;
const OP_ADD: u8 = 0x00;
const OP_AND: u8 = 0x50;
const OP_LSH: u8 = 0x60;
const OP_MOV: u8 = 0xb0;
const OP_CALL: u8 = 0x80;
const OP_EXIT: u8 = 0x90;
/// `LD_IMM64` of a map's address, and of the address of its first value.
const PSEUDO_MAP_FD: u8 = 1;
const PSEUDO_MAP_VALUE: u8 = 2;

/// A program being written.
#[derive(Debug, Default)]
pub(crate) struct Asm {
    insns: Vec<Insn>,
    labels: Vec<Option<usize>>,
    jumps: Vec<(usize, Label)>,
}

impl Asm {
    fn emit(&mut self, code: u8, dst: Reg, src: u8, off: i16, imm: i32) {
        self.insns.push(Insn { code, regs: dst as u8 | src << 4, off, imm });
    }

    /// A label to be placed later.
    pub(crate) fn label(&mut self) -> Label {
        self.labels.push(None);
        Label(self.labels.len() - 1)
    }

    /// Places a label here.
    pub(crate) fn place(&mut self, label: Label) {
        let old = self.labels[label.0].replace(self.insns.len());
        assert!(old.is_none(), "label {} is placed once", label.0);
    }

    /// `dst = src`
    pub(crate) fn mov(&mut self, dst: Reg, src: Reg) {
        self.emit(ALU64_REG | OP_MOV, dst, src as u8, 0, 0);
    }

    /// `dst = value`
    pub(crate) fn mov_imm(&mut self, dst: Reg, value: i32) {
        self.emit(ALU64_IMM | OP_MOV, dst, 0, 0, value);
    }

    /// `dst += src`
    pub(crate) fn add(&mut self, dst: Reg, src: Reg) {
        self.emit(ALU64_REG | OP_ADD, dst, src as u8, 0, 0);
    }

    /// `dst += value`
    pub(crate) fn add_imm(&mut self, dst: Reg, value: i32) {
        self.emit(ALU64_IMM | OP_ADD, dst, 0, 0, value);
    }

    /// `dst &= value`
    pub(crate) fn and_imm(&mut self, dst: Reg, value: i32) {
        self.emit(ALU64_IMM | OP_AND, dst, 0, 0, value);
    }

    /// `dst <<= bits`
    pub(crate) fn shift_left(&mut self, dst: Reg, bits: i32) {
        self.emit(ALU64_IMM | OP_LSH, dst, 0, 0, bits);
    }

    /// `dst = *(width *)(src + off)`
    pub(crate) fn load(&mut self, width: Width, dst: Reg, src: Reg, off: i16) {
        self.emit(LDX_MEM | width as u8, dst, src as u8, off, 0);
    }

    /// `*(width *)(dst + off) = src`
    pub(crate) fn store(&mut self, width: Width, dst: Reg, off: i16, src: Reg) {
        self.emit(STX_MEM | width as u8, dst, src as u8, off, 0);
    }

    /// `*(width *)(dst + off) = value`
    pub(crate) fn store_imm(&mut self, width: Width, dst: Reg, off: i16, value: i32) {
        self.emit(ST_MEM | width as u8, dst, 0, off, value);
    }

    /// `*(word *)(dst + off) += src`, in one step
    pub(crate) fn atomic_add(&mut self, dst: Reg, off: i16, src: Reg) {
        self.emit(STX_ATOMIC, dst, src as u8, off, ATOMIC_ADD);
    }

    /// `src` and `*(word *)(dst + off)` change places, in one step
    pub(crate) fn exchange(&mut self, dst: Reg, off: i16, src: Reg) {
        self.emit(STX_ATOMIC, dst, src as u8, off, ATOMIC_EXCHANGE);
    }

    /// `dst = the map behind fd`
    pub(crate) fn load_map(&mut self, dst: Reg, fd: i32) {
        self.emit(LD_IMM64, dst, PSEUDO_MAP_FD, 0, fd);
        self.emit(0, Reg::R0, 0, 0, 0);
    }

    /// `dst = the address of the first value of the array behind fd`
    pub(crate) fn load_map_value(&mut self, dst: Reg, fd: i32) {
        self.emit(LD_IMM64, dst, PSEUDO_MAP_VALUE, 0, fd);
        self.emit(0, Reg::R0, 0, 0, 0);
    }

    /// `goto label`
    pub(crate) fn jump(&mut self, label: Label) {
        self.jumps.push((self.insns.len(), label));
        self.emit(JMP_IMM, Reg::R0, 0, 0, 0);
    }

    /// `if dst ? src goto label`
    pub(crate) fn jump_if(&mut self, dst: Reg, cond: If, src: Reg, label: Label) {
        self.jumps.push((self.insns.len(), label));
        self.emit(JMP_REG | cond as u8, dst, src as u8, 0, 0);
    }

    /// `if dst ? value goto label`
    pub(crate) fn jump_if_imm(&mut self, dst: Reg, cond: If, value: i32, label: Label) {
        self.jumps.push((self.insns.len(), label));
        self.emit(JMP_IMM | cond as u8, dst, 0, 0, value);
    }

    /// `r0 = helper(r1 … r5)`; `r1`–`r5` are lost.
    pub(crate) fn call(&mut self, helper: Helper) {
        self.emit(JMP_IMM | OP_CALL, Reg::R0, 0, 0, helper as i32);
    }

    /// `return r0`
    pub(crate) fn exit(&mut self) {
        self.emit(JMP_IMM | OP_EXIT, Reg::R0, 0, 0, 0);
    }

    /// The program with every jump filled in.
    pub(crate) fn finish(mut self) -> Vec<Insn> {
        for (at, label) in &self.jumps {
            let target = self.labels[label.0].expect("a jump's label is placed");
            let distance = i64::try_from(target).unwrap_or(i64::MAX) - i64::try_from(at + 1).unwrap_or(0);
            self.insns[*at].off = i16::try_from(distance).expect("the program is short");
        }
        self.insns
    }
}

#[cfg(test)]
mod tests {
    use super::Reg::{R0, R1, R2, R6, R10};
    use super::*;

    /// The bytes of the program in hex, one word per instruction, as `llvm-objdump` prints them.
    fn hex(program: &[Insn]) -> Vec<String> {
        let bytes = |i: &Insn| {
            let [o0, o1] = i.off.to_le_bytes();
            let [i0, i1, i2, i3] = i.imm.to_le_bytes();
            [i.code, i.regs, o0, o1, i0, i1, i2, i3]
        };
        program.iter().map(|i| bytes(i).iter().map(|b| format!("{b:02x}")).collect()).collect()
    }

    #[track_caller]
    fn check(write: impl FnOnce(&mut Asm), want: &[&str]) {
        let mut asm = Asm::default();
        write(&mut asm);
        assert_eq!(hex(&asm.finish()), want);
    }

    #[test]
    fn instructions_are_encoded_as_the_standard_says() {
        check(|a| a.mov(R6, R1), &["bf16000000000000"]);
        check(|a| a.mov_imm(R0, 2), &["b700000002000000"]);
        check(|a| a.add(R2, R1), &["0f12000000000000"]);
        check(|a| a.add_imm(R2, -8), &["07020000f8ffffff"]);
        check(|a| a.and_imm(R2, 15), &["570200000f000000"]);
        check(|a| a.shift_left(R2, 2), &["6702000002000000"]);
        check(|a| a.load(Width::Word, R2, R1, 4), &["6112040000000000"]);
        check(|a| a.load(Width::Half, R2, R1, 12), &["69120c0000000000"]);
        check(|a| a.load(Width::Byte, R2, R1, 6), &["7112060000000000"]);
        check(|a| a.load(Width::Double, R2, R1, 0), &["7912000000000000"]);
        check(|a| a.store(Width::Word, R10, -4, R1), &["631afcff00000000"]);
        check(|a| a.store_imm(Width::Double, R10, -16, 0), &["7a0af0ff00000000"]);
        check(|a| a.atomic_add(R6, 68, R1), &["c316440000000000"]);
        check(|a| a.exchange(R6, 0, R1), &["c3160000e1000000"]);
        check(|a| a.load_map(R1, 5), &["1811000005000000", "0000000000000000"]);
        check(|a| a.load_map_value(R1, 5), &["1821000005000000", "0000000000000000"]);
        check(|a| a.call(Helper::MapLookup), &["8500000001000000"]);
        check(Asm::exit, &["9500000000000000"]);
    }

    #[test]
    fn jumps_reach_their_labels_over_wide_instructions() {
        let program = |a: &mut Asm| {
            let out = a.label();
            a.jump_if_imm(R1, If::NotEqual, 7, out);
            a.jump_if(R1, If::Greater, R2, out);
            a.load_map(R1, 5);
            a.jump(out);
            a.place(out);
            a.exit();
        };
        let want = [
            "5501040007000000",
            "2d21030000000000",
            "1811000005000000",
            "0000000000000000",
            "0500000000000000",
            "9500000000000000",
        ];
        check(program, &want);
    }
}
