//! Which devices the processes of a v2 group may use: a small BPF program per list of rules.
//!
//! The kernel asks the program with the kind, the numbers and the wanted access. What no rule allows is denied.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::io::Errno;

use super::super::device::{DeviceAccess, Kind, Rule};
use crate::error::{Error, Result, ResultExt as _};
use crate::sys::bpf::{Instruction, attach_device_program, load_device_program};

// Fields of `struct bpf_cgroup_dev_ctx`, and the halves of the first.
const ACCESS_AND_KIND: i16 = 0;
const MAJOR: i16 = 4;
const MINOR: i16 = 8;
const KIND_BLOCK: i32 = 1;
const KIND_CHARACTER: i32 = 2;
const MAY_MKNOD: i32 = 1;
const MAY_READ: i32 = 2;
const MAY_WRITE: i32 = 4;

// Registers. The kernel passes the context in the first.
const RESULT: u8 = 0;
const CONTEXT: u8 = 1;
const SCRATCH: u8 = 1;
const KIND: u8 = 2;
const ACCESS: u8 = 3;
const MAJOR_NUMBER: u8 = 4;
const MINOR_NUMBER: u8 = 5;

/// Restricts a group to the rules; says whether this kernel could.
pub(super) fn attach(group: BorrowedFd<'_>, rules: &[Rule]) -> Result<bool> {
    let doing = || "restrict devices of the control group with a BPF program";
    let program = match program(rules) {
        Err(Errno::NOSYS | Errno::PERM) => return Ok(false),
        program => program.context(doing)?,
    };
    match attach_device_program(group, program.as_fd()) {
        Err(Errno::PERM | Errno::INVAL) => Ok(false),
        result => result.map(|()| true).map_err(Error::from).context(doing),
    }
}

/// Programs that have been loaded, the youngest last. Most sandboxes have the same rules.
static LOADED: Mutex<Vec<(Vec<Rule>, Arc<OwnedFd>)>> = Mutex::new(Vec::new());
const MAX_LOADED: usize = 16;

fn program(rules: &[Rule]) -> Result<Arc<OwnedFd>, Errno> {
    let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, program)) = loaded.iter().find(|(known, _)| known == rules) {
        return Ok(Arc::clone(program));
    }
    let program = Arc::new(load_device_program(&compile(rules))?);
    if loaded.len() == MAX_LOADED {
        loaded.remove(0);
    }
    loaded.push((rules.to_vec(), Arc::clone(&program)));
    Ok(program)
}

fn compile(rules: &[Rule]) -> Vec<Instruction> {
    let mut program = vec![
        load_word(KIND, CONTEXT, ACCESS_AND_KIND),
        instruction(MOVE_REGISTER, ACCESS, KIND, 0, 0),
        instruction(AND_VALUE, KIND, 0, 0, 0xffff),
        instruction(SHIFT_RIGHT, ACCESS, 0, 0, 16),
        load_word(MAJOR_NUMBER, CONTEXT, MAJOR),
        load_word(MINOR_NUMBER, CONTEXT, MINOR),
    ];
    for rule in rules {
        program.extend(compile_rule(rule));
    }
    program.extend(answer(0));
    program
}

/// Checks that each go to the next rule when they fail.
fn compile_rule(rule: &Rule) -> Vec<Instruction> {
    let kind = if rule.kind == Kind::Block { KIND_BLOCK } else { KIND_CHARACTER };
    let mut block = vec![instruction(JUMP_NOT_VALUE, KIND, 0, 0, kind)];
    if rule.access != DeviceAccess::ALL {
        block.push(instruction(MOVE_REGISTER, SCRATCH, ACCESS, 0, 0));
        block.push(instruction(AND_VALUE, SCRATCH, 0, 0, bits(rule.access)));
        block.push(instruction(JUMP_NOT_REGISTER, SCRATCH, ACCESS, 0, 0));
    }
    for (register, number) in [(MAJOR_NUMBER, rule.major), (MINOR_NUMBER, rule.minor)] {
        block.extend(number.map(|number| instruction(JUMP_NOT_VALUE, register, 0, 0, number.cast_signed())));
    }
    block.extend(answer(1));
    let end = i16::try_from(block.len()).expect("a rule has few instructions");
    for (at, one) in (1..).zip(&mut block) {
        if matches!(one.code, JUMP_NOT_VALUE | JUMP_NOT_REGISTER) {
            one.offset = end - at;
        }
    }
    block
}

fn bits(access: DeviceAccess) -> i32 {
    let DeviceAccess { read, write, mknod } = access;
    [(read, MAY_READ), (write, MAY_WRITE), (mknod, MAY_MKNOD)].iter().filter(|(may, _)| *may).map(|(_, bit)| bit).sum()
}

// Codes of 32-bit operations, from `linux/bpf.h`.
const LOAD_WORD: u8 = 0x61;
const MOVE_REGISTER: u8 = 0xbc;
const MOVE_VALUE: u8 = 0xb4;
const AND_VALUE: u8 = 0x54;
const SHIFT_RIGHT: u8 = 0x74;
const JUMP_NOT_VALUE: u8 = 0x56;
const JUMP_NOT_REGISTER: u8 = 0x5e;
const EXIT: u8 = 0x95;

fn instruction(code: u8, destination: u8, source: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction { code, registers: destination | source << 4, offset, immediate }
}

fn load_word(destination: u8, source: u8, offset: i16) -> Instruction {
    instruction(LOAD_WORD, destination, source, offset, 0)
}

fn answer(value: i32) -> [Instruction; 2] {
    [instruction(MOVE_VALUE, RESULT, 0, 0, value), instruction(EXIT, 0, 0, 0, 0)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_check_goes_to_the_next_rule() {
        let block = compile_rule(&"c 1:3 r".parse().unwrap());
        let targets: Vec<usize> = block
            .iter()
            .enumerate()
            .filter(|(_, one)| matches!(one.code, JUMP_NOT_VALUE | JUMP_NOT_REGISTER))
            .map(|(at, one)| at + 1 + usize::try_from(one.offset).unwrap())
            .collect();
        assert_eq!(targets, [block.len(); 4]);
    }

    #[test]
    fn privileged_the_kernel_accepts_the_program() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: loading BPF programs needs root");
            return;
        }
        program(&super::super::super::device::standard_rules()).unwrap();
        program(&[]).unwrap();
    }
}
