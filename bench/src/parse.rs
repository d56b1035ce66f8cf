//! What load generators print.

use crate::Error;

/// The result of one load.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Load {
    /// Operations that succeeded.
    pub operations: u64,
    /// Operations per second, as the generator says it.
    pub per_second: f64,
    /// Operations and connections that failed.
    pub errors: u64,
    /// Median of the latency in µs, if the generator tells it.
    pub p50_us: Option<f64>,
    /// 99th percentile.
    pub p99_us: Option<f64>,
    /// 99.9th percentile.
    pub p999_us: Option<f64>,
}

/// `wrk --latency`.
///
/// # Errors
/// [`Error::Output`].
pub fn wrk(text: &str) -> Result<Load, Error> {
    let lacks = |missing| Error::Output { name: "wrk", missing, text: text.to_owned() };
    let mut load = Load::default();
    let mut found = (false, false);
    for line in text.lines().map(str::trim) {
        if let Some((count, _)) = line.split_once(" requests in ") {
            load.operations = count.parse().map_err(|_| lacks("a count of requests"))?;
            found.0 = true;
        } else if let Some(rate) = line.strip_prefix("Requests/sec:") {
            load.per_second = rate.trim().parse().map_err(|_| lacks("a rate"))?;
            found.1 = true;
        } else if let Some(list) = line.strip_prefix("Socket errors:") {
            load.errors += list.split(',').filter_map(last_number).sum::<u64>();
        } else if line.starts_with("Non-2xx or 3xx responses:") {
            load.errors += last_number(line).ok_or_else(|| lacks("a count of bad responses"))?;
        } else if let Some(time) = line.strip_prefix("99%") {
            load.p99_us = wrk_time_us(time.trim());
        } else if let Some(time) = line.strip_prefix("50%") {
            load.p50_us = wrk_time_us(time.trim());
        }
    }
    match found {
        (true, true) => Ok(load),
        (false, _) => Err(lacks("\"requests in\"")),
        _ => Err(lacks("\"Requests/sec\"")),
    }
}

/// A time such as `227.00us`, `2.47ms`, `1.20s` or `1.00m`, in µs.
fn wrk_time_us(text: &str) -> Option<f64> {
    let unit_at = text.find(|c: char| c.is_ascii_alphabetic())?;
    let (number, unit) = text.split_at(unit_at);
    let scale = match unit {
        "us" => 1.0,
        "ms" => 1e3,
        "s" => 1e6,
        "m" => 60e6,
        "h" => 3600e6,
        _ => return None,
    };
    Some(number.parse::<f64>().ok()? * scale)
}

fn last_number(text: &str) -> Option<u64> {
    text.split_whitespace().last()?.parse().ok()
}

/// `ab`.
///
/// # Errors
/// [`Error::Output`].
pub fn ab(text: &str) -> Result<Load, Error> {
    let lacks = |missing| Error::Output { name: "ab", missing, text: text.to_owned() };
    let value = |name: &str| {
        let line = text.lines().find_map(|line| line.trim().strip_prefix(name)?.strip_prefix(':'))?;
        line.split_whitespace().next()
    };
    let count = |name: &str| value(name).and_then(|word| word.parse::<u64>().ok());
    let failed = count("Failed requests").ok_or_else(|| lacks("\"Failed requests\""))?;
    let complete = count("Complete requests").ok_or_else(|| lacks("\"Complete requests\""))?;
    let p99_ms = text
        .lines()
        .find_map(|line| line.trim().strip_prefix("99%"))
        .and_then(|rest| rest.split_whitespace().next()?.parse::<f64>().ok());
    Ok(Load {
        operations: complete.saturating_sub(failed),
        per_second: value("Requests per second")
            .and_then(|word| word.parse().ok())
            .ok_or_else(|| lacks("\"Requests per second\""))?,
        // These two lines are there only if there was such a thing.
        errors: failed + count("Non-2xx responses").unwrap_or(0) + count("Write errors").unwrap_or(0),
        p99_us: p99_ms.map(|ms| ms * 1e3),
        ..Load::default()
    })
}

/// `redis-benchmark --csv` with one test of `operations` requests. It ends with a failure at the
/// first error, so what it prints has none.
///
/// # Errors
/// [`Error::Output`].
pub fn redis_benchmark(text: &str, operations: u64) -> Result<Load, Error> {
    let lacks = |missing| Error::Output { name: "redis-benchmark", missing, text: text.to_owned() };
    let mut rows = text.lines().filter(|line| line.starts_with('"')).map(csv_fields);
    let titles = rows.next().ok_or_else(|| lacks("a line of titles"))?;
    let values = rows.next().ok_or_else(|| lacks("a line of values"))?;
    let number = |title: &str| {
        let at = titles.iter().position(|name| *name == title)?;
        values.get(at)?.parse::<f64>().ok()
    };
    Ok(Load {
        operations,
        per_second: number("rps").ok_or_else(|| lacks("\"rps\""))?,
        errors: 0,
        p50_us: number("p50_latency_ms").map(|ms| ms * 1e3),
        p99_us: number("p99_latency_ms").map(|ms| ms * 1e3),
        p999_us: None,
    })
}

/// `memcaslap`. A miss is an error: it asks for what it has set.
///
/// # Errors
/// [`Error::Output`].
pub fn memcaslap(text: &str) -> Result<Load, Error> {
    let lacks = |missing| Error::Output { name: "memcaslap", missing, text: text.to_owned() };
    let line =
        text.lines().find(|line| line.starts_with("Run time:")).ok_or_else(|| lacks("\"Run time\""))?;
    // Run time: 2.0s Ops: 283997 TPS: 141935 Net_rate: 28.6M/s
    let after = |name: &str| line.split_whitespace().skip_while(|word| *word != name).nth(1);
    let misses = text.lines().find_map(|line| line.strip_prefix("get_misses:")).and_then(last_number);
    Ok(Load {
        operations: after("Ops:").and_then(|word| word.parse().ok()).ok_or_else(|| lacks("\"Ops\""))?,
        per_second: after("TPS:").and_then(|word| word.parse().ok()).ok_or_else(|| lacks("\"TPS\""))?,
        errors: misses.ok_or_else(|| lacks("\"get_misses\""))?,
        ..Load::default()
    })
}

fn csv_fields(line: &str) -> Vec<&str> {
    line.split(',').map(|field| field.trim().trim_matches('"')).collect()
}

/// The counters of `utcp metrics`: `name value #meaning`.
#[must_use]
pub fn counters(text: &str) -> Vec<(String, u64)> {
    text.lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            Some((words.next()?.to_owned(), words.next()?.parse().ok()?))
        })
        .collect()
}

/// A row of `strace -c`: system call and how often.
///
/// # Errors
/// [`Error::Output`].
pub fn strace(text: &str) -> Result<Vec<(String, u64)>, Error> {
    let lacks = |missing| Error::Output { name: "strace", missing, text: text.to_owned() };
    let mut rules = 0;
    let mut rows = Vec::new();
    for line in text.lines() {
        if line.starts_with("------") {
            rules += 1;
        } else if rules == 1 {
            // % time, seconds, usecs/call, calls, errors (may be empty), syscall
            let words: Vec<&str> = line.split_whitespace().collect();
            let (Some(calls), Some(name)) = (words.get(3), words.last()) else { continue };
            rows.push(((*name).to_owned(), calls.parse().map_err(|_| lacks("a count of calls"))?));
        }
    }
    // Without any call at all strace prints nothing.
    if rules < 2 && !text.trim().is_empty() && !rows.is_empty() {
        return Err(lacks("its last line"));
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrk_without_errors() {
        let text = "Running 1s test @ http://127.0.0.1:18080/\n  1 threads and 50 connections\n  Thread Stats   Avg      \
            Stdev     Max   +/- Stdev\n    Latency     1.60ms    2.38ms  12.38ms   84.09%\n    Req/Sec    64.71k     \
            4.01k   70.34k    60.00%\n  Latency Distribution\n     50%  227.00us\n     75%    2.47ms\n     90%    \
            5.24ms\n     99%    9.57ms\n  65349 requests in 1.02s, 9.47MB read\nRequests/sec:  63935.14\n\
            Transfer/sec:      9.27MB\n";
        let load = wrk(text).unwrap();
        let p99_us = load.p99_us.unwrap();
        assert!((p99_us - 9570.0).abs() < 1e-6, "{p99_us}");
        assert_eq!((load.operations, load.per_second, load.errors), (65349, 63935.14, 0));
    }

    #[test]
    fn wrk_with_errors() {
        let text = "  26111 requests in 1.10s, 4.61MB read\n  Socket errors: connect 1, read 2, write 3, timeout 4\n  \
            Non-2xx or 3xx responses: 5\nRequests/sec:  23737.64\n";
        let load = wrk(text).unwrap();
        assert_eq!((load.operations, load.errors, load.p99_us), (26111, 15, None));
    }

    #[test]
    fn wrk_that_could_not_connect() {
        let error = wrk("unable to connect to 127.0.0.1:1 Connection refused\n").unwrap_err();
        assert!(error.to_string().contains("Connection refused"));
    }

    #[test]
    fn times_of_wrk() {
        let cases =
            [("227.00us", 227.0), ("2.50ms", 2500.0), ("1.20s", 1.2e6), ("2.00m", 120e6), ("0.00us", 0.0)];
        for (text, us) in cases {
            assert!((wrk_time_us(text).unwrap() - us).abs() < 1e-3, "{text}");
        }
        assert_eq!(wrk_time_us("nan%"), None);
    }

    #[test]
    fn ab_with_and_without_failures() {
        let text = "Concurrency Level:      50\nTime taken for tests:   0.277 seconds\nComplete requests:      5000\n\
            Failed requests:        3\n   (Connect: 0, Receive: 0, Length: 3, Exceptions: 0)\nNon-2xx responses:      2\n\
            Requests per second:    18034.40 [#/sec] (mean)\nTime per request:       2.772 [ms] (mean)\n  98%      9\n  \
            99%     11\n 100%     12 (longest request)\n";
        let load = ab(text).unwrap();
        let want = Load {
            operations: 4997,
            per_second: 18034.40,
            errors: 5,
            p99_us: Some(11000.0),
            ..Load::default()
        };
        assert_eq!(load, want);
        assert!(ab("apr_socket_recv: Connection reset by peer (104)").is_err());
    }

    #[test]
    fn csv_of_redis_benchmark() {
        let text = "\"test\",\"rps\",\"avg_latency_ms\",\"min_latency_ms\",\"p50_latency_ms\",\"p95_latency_ms\",\
            \"p99_latency_ms\",\"max_latency_ms\"\n\"GET\",\"120481.93\",\"0.266\",\"0.032\",\"0.263\",\"0.383\",\"0.439\",\"1.175\"\n";
        let load = redis_benchmark(text, 20000).unwrap();
        assert_eq!((load.operations, load.per_second, load.errors), (20000, 120_481.93, 0));
        assert!((load.p99_us.unwrap() - 439.0).abs() < 1e-6);
        assert!(
            redis_benchmark("Could not connect to Redis at 127.0.0.1:1: Connection refused\n", 1).is_err()
        );
    }

    #[test]
    fn memcaslap_with_and_without_misses() {
        let text = "cmd_get: 255573\ncmd_set: 28424\nget_misses: 3\nwritten_bytes: 21950804\n\n\
            Run time: 2.0s Ops: 283997 TPS: 141935 Net_rate: 28.6M/s\n";
        let load = memcaslap(text).unwrap();
        assert_eq!((load.operations, load.per_second, load.errors), (283_997, 141_935.0, 3));
        assert!(memcaslap("get_misses: 0\n").is_err() && memcaslap("Run time: 1s Ops: 1 TPS: 1\n").is_err());
    }

    #[test]
    fn counters_have_meanings_and_ports_have_counters() {
        let text = "accepts 12 # Connections put into an accept queue.\nxdp:eth0.rx 7\nrubbish\n";
        assert_eq!(counters(text), [("accepts".to_owned(), 12), ("xdp:eth0.rx".to_owned(), 7)]);
    }

    #[test]
    fn strace_counts() {
        let text = "strace: Process 77 attached\n% time     seconds  usecs/call     calls    errors syscall\n\
            ------ ----------- ----------- --------- --------- ----------------\n 60.00    0.000600           6       100        \
            12 accept4\n 40.00    0.000400           2       200           epoll_wait\n\
            ------ ----------- ----------- --------- --------- ----------------\n100.00    0.001000           3       300        12 total\n";
        assert_eq!(strace(text).unwrap(), [("accept4".to_owned(), 100), ("epoll_wait".to_owned(), 200)]);
        assert_eq!(strace("").unwrap(), []);
    }
}
