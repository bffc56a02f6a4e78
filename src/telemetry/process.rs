//! What the operating system says about the process (Linux; absent elsewhere).

use std::fs;
use std::sync::Arc;

use super::catalog;
use super::instruments::{Instruments, Sink, Slot};

/// One reading of `/proc/self`. What cannot be read is absent.
#[derive(Debug, Default)]
struct Process {
    stat: Option<Stat>,
    open_fds: Option<u64>,
    max_fds: Option<u64>,
}

/// The fields of `/proc/self/stat` that are of interest.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Stat {
    cpu_ticks: u64,
    threads: u64,
    start_ticks: u64,
    virtual_bytes: u64,
    resident_pages: u64,
}

pub(super) fn register(instruments: &Instruments) {
    let slot: Slot<Process> = instruments.slot();
    slot.set(Arc::new(|| Some(Process::read())));
    let ticks = rustix::param::clock_ticks_per_second().max(1) as f64;
    let page = rustix::param::page_size() as u64;
    let boot = boot_time();
    let with = |read: fn(&Process) -> Option<u64>| {
        move |process: &Process, sink: &mut Sink<'_, u64>| {
            if let Some(value) = read(process) {
                sink(value, &[]);
            }
        }
    };
    instruments.each(catalog::PROCESS_MEMORY, &slot, move |process, sink| {
        if let Some(stat) = process.stat {
            sink(stat.resident_pages * page, &[]);
        }
    });
    instruments.each(
        catalog::PROCESS_VIRTUAL,
        &slot,
        with(|process| process.stat.map(|stat| stat.virtual_bytes)),
    );
    instruments.each(catalog::PROCESS_THREADS, &slot, with(|process| process.stat.map(|stat| stat.threads)));
    instruments.each(catalog::PROCESS_FDS, &slot, with(|process| process.open_fds));
    instruments.each(catalog::PROCESS_FDS_MAX, &slot, with(|process| process.max_fds));
    instruments.each_f64(catalog::PROCESS_CPU, &slot, move |process, sink| {
        if let Some(stat) = process.stat {
            sink(stat.cpu_ticks as f64 / ticks, &[]);
        }
    });
    instruments.each_f64(catalog::PROCESS_START, &slot, move |process, sink| {
        if let (Some(stat), Some(boot)) = (process.stat, boot) {
            sink(boot as f64 + stat.start_ticks as f64 / ticks, &[]);
        }
    });
}

impl Process {
    fn read() -> Self {
        Process {
            stat: fs::read_to_string("/proc/self/stat").ok().and_then(|text| parse_stat(&text)),
            // The directory handle that counts is itself one of the entries.
            open_fds: fs::read_dir("/proc/self/fd")
                .ok()
                .map(|entries| (entries.count() as u64).saturating_sub(1)),
            max_fds: fs::read_to_string("/proc/self/limits").ok().and_then(|text| parse_limit(&text)),
        }
    }
}

/// Parses `/proc/self/stat`. The process name is in parentheses and may contain anything, so fields are counted
/// from the last parenthesis.
fn parse_stat(text: &str) -> Option<Stat> {
    let fields: Vec<&str> = text[text.rfind(')')? + 1..].split_ascii_whitespace().collect();
    // proc(5) numbers fields from 1; the first one here is the third.
    let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
    Some(Stat {
        cpu_ticks: field(14)? + field(15)?,
        threads: field(20)?,
        start_ticks: field(22)?,
        virtual_bytes: field(23)?,
        resident_pages: field(24)?,
    })
}

/// The soft limit of open files. `unlimited` has no number.
fn parse_limit(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

/// When the machine started, in seconds since the Unix epoch.
fn boot_time() -> Option<u64> {
    let text = fs::read_to_string("/proc/stat").ok()?;
    text.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_status_line_whatever_the_process_is_called() {
        let text = "42 (a) b (c) S 1 42 42 0 -1 4194560 100 0 0 0 7 5 0 0 20 0 9 0 1000 4096000 250 18446744073709551615";
        let stat = parse_stat(text);
        let expected = Stat {
            cpu_ticks: 12,
            threads: 9,
            start_ticks: 1000,
            virtual_bytes: 4_096_000,
            resident_pages: 250,
        };
        assert_eq!(stat, Some(expected));
    }

    #[test]
    fn reads_the_soft_limit_of_open_files() {
        let text = "Limit  Soft Limit  Hard Limit  Units\nMax open files            1024                 4096                 files\n";
        assert_eq!(parse_limit(text), Some(1024));
    }
}
