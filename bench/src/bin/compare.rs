//! The kernel against utcp: table, JSON and page.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use utcp_bench::apps::Application;
use utcp_bench::case::{App, Case, Extent, Scenario, cases};
use utcp_bench::compare::{self, Plan, Progress};
use utcp_bench::engine::Files;
use utcp_bench::machine::Machine;
use utcp_bench::net::{self, Net};
use utcp_bench::report::{Report, table};
use utcp_bench::run::{Pinning, Sample, Side};
use utcp_bench::{Error, counts, cpu, interrupt, special};

/// The default ends within ten minutes, --quick of one scenario and program within two.
const BUDGET: Duration = Duration::from_secs(560);
const BUDGET_QUICK: Duration = Duration::from_secs(75);

#[derive(Parser)]
#[command(
    name = "utcp-compare",
    version,
    about = "Runs unmodified programs in turn on the kernel's TCP and on utcp, and tells the ratio."
)]
struct Arguments {
    /// Fewer and shorter runs.
    #[arg(long)]
    quick: bool,
    /// Every case, with all points of the curves: takes hours.
    #[arg(long, conflicts_with = "quick")]
    full: bool,
    /// Where: same-host, device (two namespaces joined by a veth pair), stack-limit (a pipe instead of a
    /// device), idle (connections that do nothing), scale (more and more that do something). All but the first need
    /// root. [default: same-host and device]
    #[arg(long, value_enum)]
    scenario: Option<Scenarios>,
    /// The program under load; own: all of ours. [default: nginx, redis, pingpong, stream, msg]
    #[arg(long, value_enum)]
    app: Option<Apps>,
    /// Only the cases with this in their name.
    #[arg(long, value_name = "TEXT")]
    case: Option<String>,
    /// Pairs of runs for each case. [default: 5, or 3 with --quick]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100))]
    pairs: Option<u32>,
    /// Seconds of each run. [default: as the time allows, at most 3, or 2 with --quick]
    #[arg(long, value_name = "S", value_parser = clap::value_parser!(u32).range(1..=600))]
    seconds: Option<u32>,
    /// Wait up to so many seconds in all for moments when others leave the machine alone. [default: 30, or
    /// 10 with --quick]
    #[arg(long, value_name = "S")]
    calm: Option<u64>,
    /// Write the result as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write the result as a page.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Count the server's system calls per request instead of timing it.
    #[arg(long)]
    counts: bool,
    /// Cores of the server, such as 0 or 0,1; "any" not to pin it.
    #[arg(long, value_name = "LIST")]
    server_cores: Option<String>,
    /// Cores of the client.
    #[arg(long, value_name = "LIST")]
    client_cores: Option<String>,
    /// Cores of the engine's shards.
    #[arg(long, value_name = "LIST")]
    engine_cores: Option<String>,
    /// Leave the receive work of a device to the kernel: it is done on the sender's core then.
    #[arg(long)]
    softirq_at_sender: bool,
    /// Tell of each run where the CPU time went and what the engine counted.
    #[arg(long, short)]
    verbose: bool,
    /// Folder of libutcp.so, utcp and utcp-load. [default: where this program is]
    #[arg(long, value_name = "FOLDER")]
    built: Option<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Scenarios {
    SameHost,
    Device,
    StackLimit,
    Idle,
    Scale,
    All,
}

impl Scenarios {
    fn list(asked: Option<Self>) -> &'static [Scenario] {
        match asked {
            None => &[Scenario::SameHost, Scenario::Device],
            Some(Self::SameHost) => &[Scenario::SameHost],
            Some(Self::Device) => &[Scenario::Device],
            Some(Self::StackLimit) => &[Scenario::StackLimit],
            Some(Self::Idle) => &[Scenario::Idle],
            Some(Self::Scale) => &[Scenario::Scale],
            Some(Self::All) => &Extent::SCENARIOS,
        }
    }
}

#[derive(Clone, Copy, ValueEnum)]
enum Apps {
    Nginx,
    Redis,
    Haproxy,
    Memcached,
    Msg,
    Echo,
    Pingpong,
    Stream,
    Accept,
    Idle,
    Demux,
    Engine,
    Own,
    All,
}

impl Apps {
    fn list(asked: Option<Self>) -> &'static [App] {
        match asked {
            None | Some(Self::All) => &Extent::APPS,
            Some(Self::Nginx) => &[App::Nginx],
            Some(Self::Redis) => &[App::Redis],
            Some(Self::Haproxy) => &[App::Haproxy],
            Some(Self::Memcached) => &[App::Memcached],
            Some(Self::Msg) => &[App::Msg],
            Some(Self::Echo) => &[App::Echo],
            Some(Self::Pingpong) => &[App::Pingpong],
            Some(Self::Stream) => &[App::Stream],
            Some(Self::Accept) => &[App::Accept],
            Some(Self::Idle) => &[App::Idle],
            Some(Self::Demux) => &[App::Demux],
            Some(Self::Engine) => &[App::Engine],
            Some(Self::Own) => &[
                App::Pingpong,
                App::Stream,
                App::Msg,
                App::Echo,
                App::Accept,
                App::Idle,
                App::Demux,
                App::Engine,
            ],
        }
    }
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("utcp-compare: {error}");
            if matches!(error, Error::Interrupted) { ExitCode::from(130) } else { ExitCode::FAILURE }
        }
    }
}

/// Whether every run gave a result without errors.
fn run(arguments: &Arguments) -> Result<bool, Error> {
    interrupt::install()?;
    let files = files(arguments)?;
    let cases = selected(arguments)?;
    let pinning = pinning(arguments);
    if arguments.counts {
        return count(&cases, &pinning, &files);
    }
    let pairs = arguments.pairs.unwrap_or(if arguments.quick { 3 } else { 5 });
    let budget = if arguments.quick { BUDGET_QUICK } else { BUDGET };
    let seconds = match (arguments.seconds, arguments.full) {
        (Some(seconds), _) => seconds,
        (None, true) => 3,
        (None, false) => {
            let longest = if arguments.quick { 2 } else { 3 };
            compare::seconds_within(budget, cases.len(), pairs, longest)
        }
    };
    let calm = arguments.calm.unwrap_or(if arguments.quick { 10 } else { 30 });
    let plan = Plan { cases, pairs, seconds, pinning, files };
    let (report, clean) = measure(&plan, arguments.verbose, Duration::from_secs(calm))?;
    println!("\n{}", table(&report.rows));
    if let Some(path) = &arguments.json {
        report.write_json(path)?;
    }
    if let Some(path) = &arguments.html {
        report.write_html(path)?;
    }
    Ok(clean)
}

fn files(arguments: &Arguments) -> Result<Files, Error> {
    if let Some(folder) = &arguments.built {
        return Files::in_folder(folder);
    }
    let own = std::env::current_exe().map_err(Error::io("can't tell where I am"))?;
    Files::in_folder(own.parent().unwrap_or(Path::new(".")))
}

fn selected(arguments: &Arguments) -> Result<Vec<Case>, Error> {
    let mut scenarios = Scenarios::list(arguments.scenario).to_vec();
    if scenarios.len() > 1 && !net::is_root() {
        eprintln!("Not run as root: everything but the same-host scenario is left out.");
        scenarios.retain(|scenario| *scenario == Scenario::SameHost);
    }
    // Whoever names something gets it, also if it is not run by default.
    let extent = match (arguments.full || arguments.case.is_some(), arguments.scenario, arguments.app) {
        (true, _, _) => Extent::Full,
        (false, None, None) => Extent::Default,
        (false, _, Some(_)) => Extent::Asked,
        (false, Some(Scenarios::SameHost | Scenarios::Device), None) => Extent::Default,
        (false, Some(_), None) => Extent::Asked,
    };
    let mut all = cases(&scenarios, Apps::list(arguments.app), extent);
    if let Some(text) = &arguments.case {
        // A whole name means that case, a part of one all that have it.
        let whole = all.iter().any(|case| case.name == text);
        all.retain(|case| if whole { case.name == text } else { case.name.contains(text.as_str()) });
    }
    if all.is_empty() {
        return Err(Error::Missing("no case has such a scenario, program and name".to_owned()));
    }
    Ok(all)
}

/// Server and client on a core of their own, where there are two; the engine on a third.
fn pinning(arguments: &Arguments) -> Pinning {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let choose = |asked: &Option<String>, default: Option<&str>| match asked.as_deref() {
        Some("any") => None,
        Some(list) => Some(list.to_owned()),
        None => default.map(str::to_owned),
    };
    Pinning {
        server: choose(&arguments.server_cores, (cores > 1).then_some("0")),
        client: choose(&arguments.client_cores, (cores > 1).then_some("1")),
        engine: choose(&arguments.engine_cores, (cores > 2).then_some("2")),
        receive: !arguments.softirq_at_sender,
    }
}

fn settings(plan: &Plan) -> BTreeMap<String, String> {
    let mut settings = BTreeMap::new();
    let word = |cores: &Option<String>| cores.clone().unwrap_or_else(|| "any".to_owned());
    let Pinning { server, client, engine, .. } = &plan.pinning;
    settings.insert(
        "cores".to_owned(),
        format!("server {}, client {}, engine {}", word(server), word(client), word(engine)),
    );
    settings.insert(
        "runs".to_owned(),
        format!("{} pairs of {} s, 1 s of warm-up each", plan.pairs, plan.seconds),
    );
    for case in &plan.cases {
        for (name, words) in Application::settings(case) {
            settings.insert(name.to_owned(), words);
        }
    }
    for (name, value) in std::env::vars().filter(|(name, _)| name.starts_with("UTCP_")) {
        settings.insert(name, value);
    }
    settings
}

fn measure(plan: &Plan, verbose: bool, mut calm: Duration) -> Result<(Report, bool), Error> {
    let root = plan.files.command.ancestors().find(|folder| folder.join("Cargo.toml").exists());
    let mut machine = Machine::here(root);
    machine.settings = settings(plan);
    machine.settings.insert("cores busy with other things before the start".to_owned(), other_load()?);
    let mut progress = Terminal::new(plan, verbose);
    progress.say(&format!(
        "{} cases, {} pairs of {} s: about {} minutes. cores: {}; busy with other things: {}",
        plan.cases.len(),
        plan.pairs,
        plan.seconds,
        (progress.estimate().as_secs() + 30) / 60,
        machine.settings["cores"],
        machine.settings["cores busy with other things before the start"],
    ));
    let mut rows = Vec::new();
    let mut clean = true;
    let (mut disturbed, mut runs) = (0, 0);
    let mut net: Option<Net> = None;
    for case in &plan.cases {
        // One network for each scenario.
        let net = match net.take().filter(|net| net.scenario == case.scenario) {
            Some(same) => net.insert(same),
            None => net.insert(network(*case, &plan.pinning)?),
        };
        machine.settings.extend(net.settings().iter().cloned());
        match special::measure(plan, *case, net, |line| progress.say(line)) {
            Ok(None) => {}
            Ok(Some(of_case)) => {
                rows.extend(of_case);
                continue;
            }
            Err(Error::Interrupted) => return Err(Error::Interrupted),
            Err(error) => {
                progress.say(&format!("{} {} failed: {error}", case.scenario.name(), case.name));
                clean = false;
                continue;
            }
        }
        let measured = compare::measure(plan, *case, net, &mut calm, &mut progress)?;
        if verbose {
            let counters = compare::counters_per_op(&measured);
            let words: Vec<String> =
                counters.iter().map(|(name, value)| format!("{name} {value:.3}")).collect();
            progress.say(&format!("    engine, per operation: {}", words.join(", ")));
        }
        let failed = measured.failed.kernel + measured.failed.utcp;
        disturbed += compare::disturbed(&measured);
        runs += 2 * measured.pairs.len();
        let of_case = compare::rows(&measured);
        clean &= failed == 0 && of_case.iter().all(|row| row.errors.kernel + row.errors.utcp == 0);
        rows.extend(of_case);
    }
    let others = format!("{disturbed} of {runs} runs");
    if disturbed > 0 {
        progress.say(&format!(
            "{others} shared the machine with other work: CPU µs/op and spread tell of that, too."
        ));
    }
    machine.settings.insert("disturbed by other work".to_owned(), others);
    Ok((Report { machine, rows }, clean))
}

fn network(case: Case, pinning: &Pinning) -> Result<Net, Error> {
    let receive = |cores: &'_ Option<String>| cores.clone().filter(|_| pinning.receive);
    Net::new(case.scenario, receive(&pinning.server).as_deref(), receive(&pinning.client).as_deref())
}

/// How many cores others keep busy, over half a second.
fn other_load() -> Result<String, Error> {
    Ok(format!("{:.1}", cpu::busy_cores(Duration::from_millis(500))?))
}

fn count(cases: &[Case], pinning: &Pinning, files: &Files) -> Result<bool, Error> {
    let mut all = Vec::new();
    let mut clean = true;
    let mut net: Option<Net> = None;
    for case in cases {
        let net = match net.take().filter(|net| net.scenario == case.scenario) {
            Some(same) => net.insert(same),
            None => net.insert(network(*case, pinning)?),
        };
        for side in [Side::Kernel, Side::Utcp] {
            eprintln!(
                "counting {} {} {} {}",
                case.scenario.name(),
                case.app.name(),
                case.name,
                side_name(side)
            );
            match counts::count(*case, side, net, pinning, files) {
                Ok(counted) => all.push(counted),
                Err(Error::Interrupted) => return Err(Error::Interrupted),
                Err(error) => {
                    clean = false;
                    eprintln!("  {error}");
                }
            }
        }
    }
    println!("\nSystem calls of the server per operation, under strace:\n\n{}", counts::table(&all));
    Ok(clean)
}

fn side_name(side: Side) -> &'static str {
    match side {
        Side::Kernel => "kernel",
        Side::Utcp => "utcp",
    }
}

/// Progress on the error output: standard output has the table alone.
struct Terminal {
    pairs_left: u32,
    pairs: u32,
    pair_estimate: Duration,
    verbose: bool,
}

impl Terminal {
    fn new(plan: &Plan, verbose: bool) -> Self {
        let all = u32::try_from(plan.cases.len()).unwrap_or(u32::MAX).saturating_mul(plan.pairs);
        let each = Duration::from_secs(plan.seconds.into()) + Duration::from_millis(2000);
        Self { pairs_left: all, pairs: plan.pairs, pair_estimate: 2 * each, verbose }
    }

    fn estimate(&self) -> Duration {
        self.pair_estimate.saturating_mul(self.pairs_left)
    }

    fn say(&self, line: &str) {
        let _ = writeln!(std::io::stderr(), "{line}");
    }

    fn part(&self, text: &str) {
        let mut out = std::io::stderr();
        let _ = write!(out, "{text}").and_then(|()| out.flush());
    }
}

impl Progress for Terminal {
    fn begins(&mut self, case: Case, side: Side, pair: u32) {
        if side == Side::Kernel {
            self.pairs_left = self.pairs_left.saturating_sub(1);
            let what = format!("{} {} {}", case.scenario.name(), case.app.name(), case.name);
            self.part(&format!("{what:<34} {pair}/{}  ", self.pairs));
        }
        self.part(&format!("{} ", side_name(side)));
    }

    fn ended(&mut self, _: Case, _: Side, sample: &Sample) {
        let Sample { load, machine, server, client, engine, receive, .. } = sample;
        self.part(&format!("{:.0}/s", load.per_second));
        if load.errors > 0 {
            self.part(&format!(" ({} errors)", load.errors));
        }
        if sample.lost_frames > 0 {
            self.part(&format!(" ({} frames lost by the link)", sample.lost_frames));
        }
        if self.verbose {
            let seconds = |time: &Duration| format!("{:.2}", time.as_secs_f64());
            self.part(&format!(
                " [CPU s: all {} server {} client {} engine {} receive {} softirq {} stolen {}; others {:.0} %; \
                 own CPU {:.2} µs/op; p99 {:.0} µs]",
                seconds(&machine.busy),
                seconds(server),
                seconds(client),
                seconds(engine),
                seconds(receive),
                seconds(&machine.softirq),
                seconds(&machine.stolen),
                100.0 * sample.foreign_share(),
                sample.own_us_per_op(),
                load.p99_us.unwrap_or(f64::NAN),
            ));
        }
        self.part("  ");
    }

    fn failed(&mut self, _: Case, side: Side, error: &Error) {
        self.part("failed");
        if side == Side::Utcp {
            self.say("");
        } else {
            self.part("  ");
        }
        self.say(&format!("    {}: {error}", side_name(side)));
    }

    fn pair(&mut self, ratio: f64, took: Duration) {
        self.pair_estimate = took;
        self.say(&format!("{ratio:.2}x  ({} s left)", self.estimate().as_secs()));
    }
}
