//! Profiles and filters without a kernel: an interpreter of classic BPF says what a filter answers.

use super::*;
use crate::error::Kind;
use crate::sys::seccomp::Instruction;

const ALLOW: u32 = 0x7fff_0000;
const ERRNO: u32 = 0x0005_0000;
const KILL_PROCESS: u32 = 0x8000_0000;
const X86_64: u32 = 0xc000_003e;
const X86: u32 = 0x4000_0003;

/// What the kernel shows a filter.
#[derive(Clone, Copy)]
struct Data {
    number: u32,
    arch: u32,
    arguments: [u64; 6],
}

impl Data {
    fn word(&self, offset: u32) -> u32 {
        match offset {
            0 => self.number,
            4 => self.arch,
            16.. => {
                let value = self.arguments[(offset as usize - 16) / 8];
                if offset.is_multiple_of(8) { (value & 0xffff_ffff) as u32 } else { (value >> 32) as u32 }
            }
            other => panic!("load of {other}"),
        }
    }
}

/// Runs a filter, and checks on the way what the kernel's checker would: jumps go forward and stay inside.
fn answer(program: &[Instruction], data: Data) -> u32 {
    let (mut at, mut accumulator) = (0, 0);
    loop {
        let Instruction { code, jt, jf, k } = program[at];
        at += 1;
        let jump = |taken: bool| at + usize::from(if taken { jt } else { jf });
        match code {
            0x20 => accumulator = data.word(k),
            0x54 => accumulator &= k,
            0x05 => at += k as usize,
            0x15 => at = jump(accumulator == k),
            0x25 => at = jump(accumulator > k),
            0x35 => at = jump(accumulator >= k),
            0x06 => return k,
            other => panic!("instruction {other:#x}"),
        }
    }
}

fn compiled(profile: &Profile, capabilities: Capabilities, kernel: (u32, u32)) -> Filter {
    compile::compile(profile, &Host { arch: Arch::X86_64, kernel, capabilities }).unwrap()
}

fn ask(filter: &Filter, name: &str, arguments: &[u64]) -> u32 {
    let mut all = [0; 6];
    all[..arguments.len()].copy_from_slice(arguments);
    let number = syscalls::number(name, Arch::X86_64).unwrap();
    answer(filter.instructions(), Data { number, arch: X86_64, arguments: all })
}

fn builtin() -> Profile {
    Profile { arches: vec![Arch::X86_64, Arch::X86], ..(*Profile::builtin()).clone() }
}

#[test]
fn the_default_profile_allows_what_dockers_allows() {
    let filter = compiled(&builtin(), Capabilities::docker_default(), (6, 1));
    for name in ["read", "execve", "openat2", "ptrace", "chroot", "arch_prctl", "mseal", "futex_wait"] {
        assert_eq!(ask(&filter, name, &[]), ALLOW, "{name}");
    }
    for name in [
        "mount",
        "bpf",
        "setns",
        "keyctl",
        "open_by_handle_at",
        "settimeofday",
        "kcmp",
        "io_uring_setup",
        "userfaultfd",
    ] {
        assert_eq!(ask(&filter, name, &[]), ERRNO | 1, "{name}");
    }
    assert_eq!(ask(&filter, "clone3", &[]), ERRNO | 38);
    assert_eq!(ask(&filter, "clone", &[0x11]), ALLOW);
    assert_eq!(ask(&filter, "clone", &[0x1000_0011]), ERRNO | 1);
    for (family, expected) in
        [(0, ALLOW), (37, ALLOW), (38, ERRNO | 1), (39, ALLOW), (40, ERRNO | 1), (41, ALLOW), (u64::MAX, ALLOW)]
    {
        assert_eq!(ask(&filter, "socket", &[family]), expected, "family {family}");
    }
    for (value, expected) in
        [(0, ALLOW), (0x2_0008, ALLOW), (0xffff_ffff, ALLOW), (0x1_0000_0000, ERRNO | 1), (6, ERRNO | 1)]
    {
        assert_eq!(ask(&filter, "personality", &[value]), expected, "persona {value:#x}");
    }
}

#[test]
fn conditions_of_rules_follow_capabilities_and_kernel() {
    let admin = Capabilities::docker_default().with(Capabilities::SYS_ADMIN);
    let filter = compiled(&builtin(), admin, (4, 7));
    for name in ["mount", "clone3", "bpf"] {
        assert_eq!(ask(&filter, name, &[]), ALLOW, "{name}");
    }
    assert_eq!(ask(&filter, "clone", &[0x1000_0011]), ALLOW);
    assert_eq!(ask(&filter, "ptrace", &[]), ERRNO | 1, "before Linux 4.8");
}

#[test]
fn other_architectures_and_unknown_numbers_are_answered() {
    let filter = compiled(&builtin(), Capabilities::docker_default(), (6, 1));
    let ask = |arch, number| answer(filter.instructions(), Data { number, arch, arguments: [0; 6] });
    assert_eq!(ask(X86, 102), ALLOW, "socketcall of a 32-bit program");
    assert_eq!(ask(X86, 21), ERRNO | 1, "mount of a 32-bit program");
    assert_eq!(ask(0xc000_00b7, 0), KILL_PROCESS, "a program for another machine");
    assert_eq!(ask(X86_64, 3000), ERRNO | 38, "a call younger than the profile");
    assert_eq!(ask(X86_64, 0x4000_0000), ERRNO | 38, "x32");
    assert_eq!(ask(X86_64, u32::MAX), ERRNO | 38);
}

#[test]
fn every_number_is_answered_by_its_own_rule() {
    let profile = builtin();
    let filter = compiled(&profile, Capabilities::docker_default(), (6, 1));
    let unconditional: Vec<u32> =
        profile.rules[0].names.iter().filter_map(|name| syscalls::number(name, Arch::X86_64)).collect();
    for number in unconditional {
        assert_eq!(answer(filter.instructions(), Data { number, arch: X86_64, arguments: [1 << 40; 6] }), ALLOW);
    }
    assert!(filter.instructions().len() < 700, "{filter:?}");
}

fn custom(rules: &str) -> Filter {
    let text = format!(r#"{{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{rules}]}}"#);
    compiled(&Profile::from_json(&text).unwrap(), Capabilities::NONE, (6, 1))
}

#[test]
fn every_comparison_sees_all_64_bits() {
    let high = 1 << 32;
    // A comparison, its two values, arguments that match and arguments that do not.
    type Case<'a> = (&'a str, u64, u64, &'a [u64], &'a [u64]);
    let cases: [Case<'_>; 7] = [
        ("NE", high + 5, 0, &[5, high + 6], &[high + 5]),
        ("LT", high + 5, 0, &[high + 4, 9], &[high + 5, 2 * high]),
        ("LE", high + 5, 0, &[high + 5, 9], &[high + 6, 2 * high]),
        ("EQ", high + 5, 0, &[high + 5], &[5, high + 6]),
        ("GE", high + 5, 0, &[high + 5, 2 * high], &[high + 4, 9]),
        ("GT", high + 5, 0, &[high + 6, 2 * high], &[high + 5, 9]),
        ("MASKED_EQ", high | 0xf0, high | 0x10, &[high | 0x1f, (3 * high) | 0x10], &[0x10, high | 0x20]),
    ];
    for (op, value, datum, matching, others) in cases {
        let rule = format!(
            r#"{{"names":["dup3"],"action":"SCMP_ACT_ERRNO","errnoRet":9,
                "args":[{{"index":2,"value":{value},"valueTwo":{datum},"op":"SCMP_CMP_{op}"}}]}}"#
        );
        let filter = custom(&rule);
        for argument in matching {
            assert_eq!(ask(&filter, "dup3", &[0, 0, *argument]), ERRNO | 9, "{op} {argument:#x}");
        }
        for argument in others {
            assert_eq!(ask(&filter, "dup3", &[0, 0, *argument]), ALLOW, "{op} {argument:#x}");
        }
    }
}

#[test]
fn conditions_on_several_arguments_must_all_hold_and_repeated_ones_need_not() {
    let condition = |index: u8, value: u64| format!(r#"{{"index":{index},"value":{value},"op":"SCMP_CMP_EQ"}}"#);
    let rule = |conditions: [String; 2]| {
        custom(&format!(r#"{{"name":"dup3","action":"SCMP_ACT_KILL_PROCESS","args":[{}]}}"#, conditions.join(",")))
    };
    let both = rule([condition(0, 1), condition(1, 2)]);
    assert_eq!([ask(&both, "dup3", &[1, 2]), ask(&both, "dup3", &[1, 3])], [KILL_PROCESS, ALLOW]);
    let either = rule([condition(0, 1), condition(0, 2)]);
    assert_eq!([1, 2, 3].map(|value| ask(&either, "dup3", &[value])), [KILL_PROCESS, KILL_PROCESS, ALLOW]);
}

#[test]
fn far_jumps_are_bridged() {
    let rules: Vec<String> = (0..300)
        .map(|value| format!(r#"{{"names":["dup3"],"action":"SCMP_ACT_ERRNO","args":[{{"index":0,"value":{value},"op":"SCMP_CMP_EQ"}}]}}"#))
        .collect();
    let filter = custom(&rules.join(","));
    assert!(filter.instructions().len() > 1000);
    assert_eq!(
        [0, 150, 299, 300].map(|value| ask(&filter, "dup3", &[value])),
        [ERRNO | 1, ERRNO | 1, ERRNO | 1, ALLOW]
    );
    assert_eq!([ask(&filter, "read", &[]), ask(&filter, "mseal", &[])], [ALLOW, ALLOW]);
}

#[test]
fn a_filter_that_is_too_long_is_refused() {
    let rules: Vec<String> = (0..1100)
        .map(|value| format!(r#"{{"names":["dup3"],"action":"SCMP_ACT_ERRNO","args":[{{"index":0,"value":{value},"op":"SCMP_CMP_EQ"}}]}}"#))
        .collect();
    let text = format!(r#"{{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{}]}}"#, rules.join(","));
    let error = Arc::new(Profile::from_json(&text).unwrap()).filter(Capabilities::NONE).unwrap_err();
    assert!(error.to_string().contains("the kernel takes 4096"), "{error}");
}

#[test]
fn filters_are_kept_per_profile_and_capability_set() {
    let profile = Profile::builtin();
    let first = profile.filter(Capabilities::NONE).unwrap();
    assert!(Arc::ptr_eq(&first, &profile.filter(Capabilities::NONE).unwrap()));
    assert!(!Arc::ptr_eq(&first, &profile.filter(Capabilities::SYS_ADMIN).unwrap()));
    let same = Arc::new(builtin());
    assert_eq!(*same == *profile, Arch::native() == Arch::X86_64);
}

#[test]
fn a_malformed_profile_is_refused_with_a_reason() {
    let rule = |rule: &str| format!(r#"{{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{rule}]}}"#);
    let cases = [
        ("{".to_owned(), "malformed JSON"),
        (r#"{"defaultAction":"SCMP_ACT_MAYBE"}"#.to_owned(), "unknown action \"SCMP_ACT_MAYBE\""),
        (r#"{"defaultAction":"SCMP_ACT_ALLOW","listenerPath":"/x"}"#.to_owned(), "notification"),
        (r#"{"defaultAction":"SCMP_ACT_ALLOW","flags":["X"]}"#.to_owned(), "seccomp flag \"X\""),
        (
            r#"{"defaultAction":"SCMP_ACT_ALLOW","architectures":["SCMP_ARCH_X86"],"archMap":[{"architecture":"SCMP_ARCH_X86_64"}]}"#
                .to_owned(),
            "exclude each other",
        ),
        (rule(r#"{"names":["a"],"name":"b","action":"SCMP_ACT_ALLOW"}"#), "exclude each other"),
        (rule(r#"{"names":["a"],"action":"SCMP_ACT_NOTIFY"}"#), "SCMP_ACT_NOTIFY"),
        (rule(r#"{"names":["a"],"action":"SCMP_ACT_ALLOW","args":[{"index":6,"value":0,"op":"SCMP_CMP_EQ"}]}"#), "argument 6"),
        (rule(r#"{"names":["a"],"action":"SCMP_ACT_ALLOW","args":[{"index":0,"value":0,"op":"EQ"}]}"#), "unknown comparison"),
        (rule(r#"{"names":["a"],"action":"SCMP_ACT_ALLOW","includes":{"minKernel":"new"}}"#), "minKernel"),
    ];
    for (text, reason) in cases {
        let error = Profile::from_json(&text).unwrap_err();
        assert!(error.to_string().contains(reason), "{error}");
        assert!(matches!(error.kind(), Kind::InvalidArgument | Kind::Unsupported));
    }
}

#[test]
fn architectures_come_from_the_map_of_the_native_one() {
    let text = r#"{"defaultAction":"SCMP_ACT_ALLOW","archMap":[
        {"architecture":"SCMP_ARCH_X86_64","subArchitectures":["SCMP_ARCH_X86","SCMP_ARCH_X32"]},
        {"architecture":"SCMP_ARCH_AARCH64","subArchitectures":["SCMP_ARCH_ARM"]}]}"#;
    assert_eq!(Profile::from_json(text).unwrap().arches, Arch::native_family());
    assert_eq!(Profile::from_json(r#"{"defaultAction":"SCMP_ACT_ALLOW"}"#).unwrap().arches, [Arch::native()]);
}
