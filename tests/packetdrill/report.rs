//! Many scripts: a process for each, what came of it, and a table by directory.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::settings::Version;

const USAGE: &str = "\
Runs packetdrill scripts against utcp in memory, on virtual time.

  run [--ip_version=ipv4,ipv6,ipv4-mapped-ipv6] [--jobs=N] [--verbose] [--all] FILE|FOLDER …

A file `not-applicable` beside this program's source names scripts that test what is Linux's alone, with the reason;
`--all` shows how those fail, too.";

/// What came of a script.
#[derive(Debug, Clone)]
enum Verdict {
    Pass,
    Fail(String),
    NotApplicable(String),
}

struct Job {
    file: PathBuf,
    version: Version,
}

/// Parses the arguments and runs what they name.
pub fn main(args: Vec<String>) -> ExitCode {
    let mut versions = Version::ALL.to_vec();
    let (mut jobs, mut verbose, mut all, mut files) = (2, false, false, Vec::new());
    for arg in args {
        if let Some(list) = arg.strip_prefix("--ip_version=") {
            versions = list.split(',').filter_map(Version::from_name).collect();
        } else if let Some(number) = arg.strip_prefix("--jobs=") {
            jobs = number.parse().unwrap_or(1);
        } else if arg == "--verbose" {
            verbose = true;
        } else if arg == "--all" {
            all = true;
        } else if arg.starts_with('-') {
            println!("{USAGE}");
            return ExitCode::from(2);
        } else {
            collect(Path::new(&arg), &mut files);
        }
    }
    files.sort();
    if files.is_empty() || versions.is_empty() {
        println!("{USAGE}");
        return ExitCode::from(2);
    }
    let list: Vec<Job> = files.iter().flat_map(|file| expand(file, &versions)).collect();
    let reasons = if all { Vec::new() } else { reasons() };
    let verdicts = run_all(&list, jobs, verbose, &reasons);
    table(&list, &verdicts)
}

/// Scripts in a folder and those below it.
fn collect(path: &Path, files: &mut Vec<PathBuf>) {
    if path.is_dir() {
        for entry in fs::read_dir(path).into_iter().flatten().flatten() {
            let below = entry.path();
            if below.is_dir() || below.extension().is_some_and(|ext| ext == "pkt") {
                collect(&below, files);
            }
        }
    } else {
        files.push(path.to_owned());
    }
}

/// A script may be for one version of IP alone: it says so, or its name does.
fn expand(file: &Path, versions: &[Version]) -> Vec<Job> {
    let text = fs::read_to_string(file).unwrap_or_default();
    let only = text.lines().find_map(|line| line.trim().strip_prefix("--ip_version=")).map(str::trim);
    let name = file.file_stem().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let fits = |version: Version| match only {
        Some(only) => only == version.name(),
        None if name.ends_with("v6") => version == Version::V6,
        None if name.ends_with("v4") => version != Version::V6,
        None => true,
    };
    let fitting = versions.iter().filter(|version| fits(**version));
    fitting.map(|&version| Job { file: file.to_owned(), version }).collect()
}

/// Lines `PREFIX: reason` of the list of what is not applicable; the prefix is one of a path's end.
fn reasons() -> Vec<(String, String)> {
    include_str!("not-applicable")
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split_once(':'))
        .map(|(name, reason)| (name.trim().to_owned(), reason.trim().to_owned()))
        .collect()
}

fn reason(file: &Path, reasons: &[(String, String)]) -> Option<String> {
    let path = format!("/{}", file.display());
    let found = reasons.iter().find(|(name, _)| match name.strip_suffix('*') {
        Some(prefix) => path.contains(&format!("/{prefix}")),
        None => path.ends_with(&format!("/{name}.pkt")),
    });
    found.map(|(_, reason)| reason.clone())
}

fn run_all(list: &[Job], jobs: usize, verbose: bool, reasons: &[(String, String)]) -> Vec<Verdict> {
    let next = AtomicUsize::new(0);
    let verdicts = Mutex::new(vec![Verdict::Pass; list.len()]);
    std::thread::scope(|scope| {
        for _ in 0..jobs.max(1) {
            scope.spawn(|| {
                while let Some((at, job)) = {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    list.get(at).map(|job| (at, job))
                } {
                    let verdict = match run(job, verbose) {
                        Verdict::Fail(why) => {
                            reason(&job.file, reasons).map_or(Verdict::Fail(why), Verdict::NotApplicable)
                        }
                        other => other,
                    };
                    if let Verdict::Fail(why) = &verdict {
                        println!("FAIL {} ({}): line {why}", job.file.display(), job.version.name());
                    }
                    if let Ok(mut verdicts) = verdicts.lock() {
                        verdicts[at] = verdict;
                    }
                }
            });
        }
    });
    verdicts.into_inner().unwrap_or_default()
}

fn run(job: &Job, verbose: bool) -> Verdict {
    let own = match std::env::current_exe() {
        Ok(own) => own,
        Err(error) => return Verdict::Fail(error.to_string()),
    };
    let mut command = Command::new("timeout");
    command.args(["-k", "5", "60"]).arg(own).arg("--one").arg(job.version.name()).arg(&job.file);
    if verbose {
        command.arg("--verbose").stderr(std::process::Stdio::inherit());
    }
    match command.output() {
        Err(error) => Verdict::Fail(error.to_string()),
        Ok(output) if output.status.success() => Verdict::Pass,
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
            let err = String::from_utf8_lossy(&output.stderr);
            let last = err.lines().last().unwrap_or_default();
            let end = if said.is_empty() { format!("0: {} {last}", output.status) } else { said };
            Verdict::Fail(end)
        }
    }
}

/// Directory, or what stands for one in flat suites: the first word of the name behind `tcp_`.
fn group(file: &Path) -> String {
    let name = file.file_stem().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    if let Some(rest) = name.strip_prefix("tcp_") {
        return rest.split(['_', '-']).next().unwrap_or(rest).to_owned();
    }
    let folder = file.parent().and_then(Path::file_name);
    folder.map_or_else(String::new, |name| name.to_string_lossy().into_owned())
}

fn table(list: &[Job], verdicts: &[Verdict]) -> ExitCode {
    let mut rows: BTreeMap<String, [usize; 3]> = BTreeMap::new();
    let mut why: HashMap<String, usize> = HashMap::new();
    let mut all = [0; 3];
    for (job, verdict) in list.iter().zip(verdicts) {
        let column = match verdict {
            Verdict::Pass => 0,
            Verdict::Fail(_) => 1,
            Verdict::NotApplicable(reason) => {
                *why.entry(reason.clone()).or_default() += 1;
                2
            }
        };
        rows.entry(group(&job.file)).or_default()[column] += 1;
        all[column] += 1;
    }
    println!("\n{:24} {:>6} {:>6} {:>6}", "directory", "pass", "fail", "n/a");
    for (name, [pass, fail, not]) in &rows {
        println!("{name:24} {pass:>6} {fail:>6} {not:>6}");
    }
    println!("{:24} {:>6} {:>6} {:>6}", "all", all[0], all[1], all[2]);
    let mut why: Vec<(String, usize)> = why.into_iter().collect();
    why.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    for (reason, count) in why {
        println!("n/a {count:>4}: {reason}");
    }
    if all[1] == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
