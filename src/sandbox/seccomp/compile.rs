//! Compiles a profile into classic BPF: a binary search over system call numbers, per architecture.
//!
//! The program is written from its end: every target of a jump exists before the jump, so distances are known, and equal
//! endings are shared. Jumps of classic BPF reach 255 instructions; farther ones go over an unconditional jump.

use std::collections::{BTreeMap, HashMap};

use super::{Action, Arch, Condition, Host, Op, Profile, Rule, syscalls};
use crate::error::{Error, Result};
use crate::sys::seccomp::{Filter, Instruction};

const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
const AND: u16 = (libc::BPF_ALU | libc::BPF_AND | libc::BPF_K) as u16;
const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
const JUMP: u16 = (libc::BPF_JMP | libc::BPF_JA) as u16;
const JUMP_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const JUMP_GREATER: u16 = (libc::BPF_JMP | libc::BPF_JGT | libc::BPF_K) as u16;
const JUMP_GREATER_OR_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K) as u16;

// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCH: u32 = 4;
const ARGUMENTS: u32 = 16;

/// Calls of the x32 ABI have this bit. It shares its architecture with x86-64, and nothing uses it.
const X32_BIT: u32 = 0x4000_0000;
/// Private calls of arm start here, far above the calls that are counted up.
const ARM_PRIVATE: u32 = 0xf_0000;
const MAX_INSTRUCTIONS: usize = 4096;
const ENOSYS: u16 = 38;

/// Compiles a profile for a host.
pub(super) fn compile(profile: &Profile, host: &Host) -> Result<Filter> {
    let rules: Vec<&Rule> =
        profile.rules.iter().filter(|rule| rule.includes.all(host) && !rule.excludes.any(host)).collect();
    let mut program = Program::default();
    // Programs for other machines cannot run here, so this is never reached in peace.
    let mut entry = program.answer(Action::KillProcess);
    for arch in profile.arches.iter().rev() {
        let body = arch_body(&mut program, *arch, profile.default, &rules);
        entry = program.branch(JUMP_EQUAL, audit_arch(*arch), body, entry);
    }
    program.load(ARCH, entry);
    let instructions = program.finish();
    if instructions.len() > MAX_INSTRUCTIONS {
        let length = instructions.len();
        let text =
            format!("the seccomp profile makes a filter of {length} instructions; the kernel takes {MAX_INSTRUCTIONS}");
        return Err(Error::invalid(text));
    }
    Ok(Filter::new(instructions, profile.flags))
}

fn audit_arch(arch: Arch) -> u32 {
    match arch {
        Arch::X86_64 => 0xc000_003e,
        Arch::X86 => 0x4000_0003,
        Arch::Aarch64 => 0xc000_00b7,
        Arch::Arm => 0x4000_0028,
    }
}

fn arch_body(program: &mut Program, arch: Arch, default: Action, rules: &[&Rule]) -> Label {
    let default_answer = program.answer(default);
    let mut ranges = vec![(0, default_answer)];
    let mut last = None;
    for (number, decision) in decisions(arch, rules) {
        let answer = decision.write(program, default_answer);
        ranges.push((number, answer));
        ranges.push((number + 1, default_answer));
        last = last.max(Some(number).filter(|number| *number < ARM_PRIVATE));
    }
    if let (Some(last), Action::Errno(_)) = (last, default) {
        // Calls younger than the profile do not exist, rather than being forbidden, so that libc falls back (runc's rule).
        let answer = program.answer(Action::Errno(ENOSYS));
        ranges.iter_mut().filter(|(start, to)| *start == last + 1 && *to == default_answer).for_each(|r| r.1 = answer);
    }
    if arch == Arch::X86_64 {
        ranges.push((X32_BIT, program.answer(Action::Errno(ENOSYS))));
    }
    let mut merged: Vec<(u32, Label)> = Vec::new();
    for (start, answer) in ranges {
        merged.pop_if(|range| range.0 == start);
        if merged.last().is_none_or(|range| range.1 != answer) {
            merged.push((start, answer));
        }
    }
    let search = search(program, &merged);
    program.load(NUMBER, search)
}

/// What one call is answered.
enum Decision<'a> {
    Always(Action),
    /// The first rule that holds.
    Depends(Vec<(&'a [Condition], Action)>),
}

impl Decision<'_> {
    fn write(&self, program: &mut Program, default: Label) -> Label {
        match self {
            Self::Always(action) => program.answer(*action),
            Self::Depends(rules) => rules.iter().rev().fold(default, |otherwise, (conditions, action)| {
                let answer = program.answer(*action);
                conditions.iter().rev().fold(answer, |then, condition| program.test(condition, then, otherwise))
            }),
        }
    }
}

/// An unconditional rule wins over conditional ones for the same call, as in libseccomp; else the first wins.
fn decisions<'a>(arch: Arch, rules: &[&'a Rule]) -> BTreeMap<u32, Decision<'a>> {
    let mut decisions = BTreeMap::new();
    for rule in rules {
        for number in rule.names.iter().filter_map(|name| syscalls::number(name, arch)) {
            let decision = decisions.entry(number).or_insert_with(|| Decision::Depends(Vec::new()));
            if let Decision::Depends(list) = decision {
                if rule.conditions.is_empty() {
                    *decision = Decision::Always(rule.action);
                } else {
                    list.push((&rule.conditions, rule.action));
                }
            }
        }
    }
    decisions
}

fn search(program: &mut Program, ranges: &[(u32, Label)]) -> Label {
    if let [(_, only)] = ranges {
        return *only;
    }
    let (low, high) = ranges.split_at(ranges.len() / 2);
    let above = search(program, high);
    let below = search(program, low);
    program.branch(JUMP_GREATER_OR_EQUAL, high[0].0, above, below)
}

/// A place in a program, counted from its end.
type Label = usize;

/// A program that grows from its end to its beginning.
#[derive(Default)]
struct Program {
    reversed: Vec<Instruction>,
    answers: HashMap<Action, Label>,
}

impl Program {
    fn emit(&mut self, code: u16, jt: u8, jf: u8, k: u32) -> Label {
        self.reversed.push(Instruction { code, jt, jf, k });
        self.reversed.len() - 1
    }

    /// The distance from an instruction written next to `label`.
    fn distance(&self, label: Label) -> usize {
        self.reversed.len() - label - 1
    }

    fn jump(&mut self, to: Label) -> Label {
        let distance = u32::try_from(self.distance(to)).expect("a program is far shorter");
        self.emit(JUMP, 0, 0, distance)
    }

    fn answer(&mut self, action: Action) -> Label {
        if let Some(label) = self.answers.get(&action) {
            return *label;
        }
        let label = self.emit(RETURN, 0, 0, answer_value(action));
        self.answers.insert(action, label);
        label
    }

    fn branch(&mut self, code: u16, k: u32, mut yes: Label, mut no: Label) -> Label {
        // A jump written for one target moves the other one instruction away.
        loop {
            match (u8::try_from(self.distance(yes)), u8::try_from(self.distance(no))) {
                (Ok(jt), Ok(jf)) => return self.emit(code, jt, jf, k),
                (Err(_), _) => yes = self.jump(yes),
                (_, Err(_)) => no = self.jump(no),
            }
        }
    }

    /// Loads a word and goes on at `next`.
    fn load(&mut self, offset: u32, next: Label) -> Label {
        self.follow(next);
        self.emit(LOAD, 0, 0, offset)
    }

    fn and(&mut self, mask: u32, next: Label) -> Label {
        self.follow(next);
        self.emit(AND, 0, 0, mask)
    }

    /// Makes what is written next fall through to `next`.
    fn follow(&mut self, next: Label) {
        if self.distance(next) != 0 {
            self.jump(next);
        }
    }

    /// Compares an argument, which is a 64-bit value in two words.
    fn test(&mut self, condition: &Condition, yes: Label, no: Label) -> Label {
        let value = condition.value;
        match condition.op {
            Op::Equal => self.equal(condition.index, u64::MAX, value, yes, no),
            Op::NotEqual => self.equal(condition.index, u64::MAX, value, no, yes),
            Op::MaskedEqual => self.equal(condition.index, value, condition.datum, yes, no),
            Op::Greater => self.above(condition.index, JUMP_GREATER, value, yes, no),
            Op::LessOrEqual => self.above(condition.index, JUMP_GREATER, value, no, yes),
            Op::GreaterOrEqual => self.above(condition.index, JUMP_GREATER_OR_EQUAL, value, yes, no),
            Op::Less => self.above(condition.index, JUMP_GREATER_OR_EQUAL, value, no, yes),
        }
    }

    fn equal(&mut self, index: u8, mask: u64, value: u64, yes: Label, no: Label) -> Label {
        let (low_at, high_at) = words(index);
        let low = self.masked_equal(low_at, low_word(mask), low_word(value), yes, no);
        self.masked_equal(high_at, high_word(mask), high_word(value), low, no)
    }

    fn masked_equal(&mut self, offset: u32, mask: u32, value: u32, yes: Label, no: Label) -> Label {
        let compare = self.branch(JUMP_EQUAL, value, yes, no);
        let compare = if mask == u32::MAX { compare } else { self.and(mask, compare) };
        self.load(offset, compare)
    }

    /// `code` compares the low words when the high ones are equal.
    fn above(&mut self, index: u8, code: u16, value: u64, yes: Label, no: Label) -> Label {
        let (low_at, high_at) = words(index);
        let compare = self.branch(code, low_word(value), yes, no);
        let low = self.load(low_at, compare);
        let same = self.branch(JUMP_EQUAL, high_word(value), low, no);
        let high = self.branch(JUMP_GREATER, high_word(value), yes, same);
        self.load(high_at, high)
    }

    fn finish(mut self) -> Vec<Instruction> {
        self.reversed.reverse();
        self.reversed
    }
}

fn answer_value(action: Action) -> u32 {
    match action {
        Action::Allow => libc::SECCOMP_RET_ALLOW,
        Action::Log => libc::SECCOMP_RET_LOG,
        Action::Errno(errno) => libc::SECCOMP_RET_ERRNO | u32::from(errno),
        Action::Trace(data) => libc::SECCOMP_RET_TRACE | u32::from(data),
        Action::Trap => libc::SECCOMP_RET_TRAP,
        Action::KillThread => libc::SECCOMP_RET_KILL_THREAD,
        Action::KillProcess => libc::SECCOMP_RET_KILL_PROCESS,
    }
}

/// The offsets of an argument's low and high word on a little-endian machine.
fn words(index: u8) -> (u32, u32) {
    let low = ARGUMENTS + 8 * u32::from(index);
    (low, low + 4)
}

#[expect(clippy::cast_possible_truncation, reason = "the low half is what is wanted")]
fn low_word(value: u64) -> u32 {
    value as u32
}

fn high_word(value: u64) -> u32 {
    (value >> 32) as u32
}
