//! What the machine as a whole does while a build runs, for its provenance: read now and then, and once at the end.
//!
//! The fields are those of BuildKit's `SysSample`, with its names and units: seconds of processor time, KiB of memory, as the kernel
//! has them in `/proc/stat`, `/proc/meminfo` and `/proc/pressure`.

use std::sync::{Arc, Mutex};

use serde_json::{Map, Value, json};

use super::lock;
use super::ops::{Meter, Reading};
use crate::task::Owned;

/// The counters of a machine, as an object.
#[derive(Clone, Debug)]
pub(super) struct Machine(pub(super) Map<String, Value>);

/// Reads a machine's counters until it is dropped.
#[derive(Debug)]
pub(super) struct Watch {
    meter: Arc<Mutex<Meter<Machine>>>,
    _reader: Owned<()>,
}

impl Watch {
    /// Begins to read. Needs a runtime.
    pub(super) fn begin(now_ns: impl Fn() -> i64 + Send + 'static) -> Self {
        let meter = Arc::new(Mutex::new(Meter::new()));
        let read = Arc::clone(&meter);
        let reader = Owned::spawn(async move {
            loop {
                let pause = lock(&read).pause();
                tokio::time::sleep(pause).await;
                // A few files that the kernel makes when they are read.
                lock(&read).add(now_ns(), Machine::read());
            }
        });
        Self { meter, _reader: reader }
    }

    /// Returns what was read, and how it is now.
    pub(super) fn readings(&self, now_ns: i64) -> Vec<Reading<Machine>> {
        lock(&self.meter).clone().end(now_ns, Some(Machine::read()))
    }
}

impl Machine {
    fn read() -> Self {
        let text = |path: &str| std::fs::read_to_string(path).ok();
        let pressures = ["cpu", "memory", "io"].map(|what| text(&format!("/proc/pressure/{what}")));
        let [stat, memory] = ["/proc/stat", "/proc/meminfo"].map(|path| text(path).unwrap_or_default());
        Self(describe(&stat, &memory, &pressures))
    }
}

/// Describes a machine by the texts of the kernel's files; a kernel that does not know pressure has no files of it.
fn describe(stat: &str, memory: &str, pressures: &[Option<String>; 3]) -> Map<String, Value> {
    let number = |text: &str, name: &str| -> Option<u64> {
        text.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse().ok())
    };
    let ticks: Vec<u64> = stat
        .lines()
        .find_map(|line| line.strip_prefix("cpu "))
        .map(|line| line.split_whitespace().map_while(|field| field.parse().ok()).collect())
        .unwrap_or_default();
    let names = ["user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal", "guest", "guestNice"];
    // The kernel shows programs 100 ticks a second, whatever it counts itself.
    let seconds = |at: usize| ticks.get(at).copied().unwrap_or_default() as f64 / 100.0;
    let cpu: Map<String, Value> =
        names.iter().enumerate().map(|(at, name)| ((*name).to_owned(), seconds(at).into())).collect();
    let count = |name: &str| number(stat, name).unwrap_or_default();
    let kib = |name: &str| number(memory, name);
    let mut machine = Map::new();
    machine.insert("cpuStat".to_owned(), cpu.into());
    machine.insert(
        "procStat".to_owned(),
        json!({
            "contextSwitches": count("ctxt "),
            "processCreated": count("processes "),
            "processesRunning": count("procs_running "),
        }),
    );
    machine.insert(
        "memoryStat".to_owned(),
        json!({
            "total": kib("MemTotal:"),
            "free": kib("MemFree:"),
            "available": kib("MemAvailable:"),
            "buffers": kib("Buffers:"),
            "cached": kib("Cached:"),
            "active": kib("Active:"),
            "inactive": kib("Inactive:"),
            "swap": kib("SwapTotal:"),
            "dirty": kib("Dirty:"),
            "writeback": kib("Writeback:"),
            "slab": kib("Slab:"),
        }),
    );
    for (name, text) in ["cpuPressure", "memoryPressure", "ioPressure"].into_iter().zip(pressures) {
        machine.extend(text.as_deref().map(|text| (name.to_owned(), pressure(text))));
    }
    machine
}

/// Lines such as `some avg10=0.12 avg60=0.00 avg300=0.00 total=1234`.
fn pressure(text: &str) -> Value {
    let value = |field: &str| {
        let (name, value) = field.split_once('=')?;
        let value = match name {
            "total" => Value::from(value.parse::<u64>().ok()?),
            _ => Value::from(value.parse::<f64>().ok()?),
        };
        Some((name.to_owned(), value))
    };
    let of_line = |line: &str| {
        let (kind, fields) = line.split_once(' ')?;
        Some((kind.to_owned(), Value::Object(fields.split_whitespace().filter_map(value).collect())))
    };
    Value::Object(text.lines().filter_map(of_line).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_is_described_with_buildkits_names_and_units() {
        let stat = "cpu  311878 1 23574 29992 1030 0 275 1400 2 3\ncpu0 151174 0 11314 20485 350 0 26 708 0 0\nctxt 9000\n\
                    btime 1\nprocesses 700\nprocs_running 13\nprocs_blocked 0\n";
        let memory = "MemTotal:       24683520 kB\nMemFree:        19609000 kB\nMemAvailable:   21991000 kB\n\
                      Buffers:           93424 kB\nCached:          2582216 kB\nSwapCached:            7 kB\n\
                      Active:           100000 kB\nInactive:         200000 kB\nActive(anon):          8 kB\n\
                      SwapTotal:             0 kB\nDirty:                12 kB\nWriteback:             3 kB\nWritebackTmp:          9 kB\n";
        let io = "some avg10=70.29 avg60=40.21 avg300=44.46 total=1045901937\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n";
        let machine = Value::Object(describe(stat, memory, &[None, None, Some(io.to_owned())]));
        let expected = json!({
            "cpuStat": {
                "user": 3118.78, "nice": 0.01, "system": 235.74, "idle": 299.92, "iowait": 10.3, "irq": 0.0,
                "softirq": 2.75, "steal": 14.0, "guest": 0.02, "guestNice": 0.03,
            },
            "procStat": {"contextSwitches": 9000, "processCreated": 700, "processesRunning": 13},
            "memoryStat": {
                "total": 24_683_520, "free": 19_609_000, "available": 21_991_000, "buffers": 93424, "cached": 2_582_216,
                "active": 100_000, "inactive": 200_000, "swap": 0, "dirty": 12, "writeback": 3, "slab": null,
            },
            "ioPressure": {
                "some": {"avg10": 70.29, "avg60": 40.21, "avg300": 44.46, "total": 1_045_901_937},
                "full": {"avg10": 0.0, "avg60": 0.0, "avg300": 0.0, "total": 0},
            },
        });
        assert_eq!(machine, expected);
    }
}
