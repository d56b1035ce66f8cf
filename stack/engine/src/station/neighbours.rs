//! Who lives where on the link: IP address → link address (RFC 826, RFC 1122 §2.3.2, RFC 4861 §7.3).
//!
//! ```text
//!           want                 answer               30 s            want
//!  nothing ──────► INCOMPLETE ──────────► REACHABLE ────────► STALE ────────► PROBE ─ answer ─► REACHABLE
//!                      │ 3 questions                    ▲                       │ 3 questions to the old address
//!                      ▼                     someone asked us                   ▼
//!                   nothing                                              INCOMPLETE
//! ```
//!
//! Pure: time is an argument, questions are polled. Bounded: the entry that was not used for the longest time makes
//! room. Strangers can't fill it: only who asks for one of our addresses, or answers, gets an entry.

use utcp_proto::wire::IpAddr;
use utcp_proto::wire::ethernet::Mac;
use utcp_proto::{Duration, Instant};

/// Entries at most.
const ENTRIES_MAX: usize = 512;
/// `REACHABLE_TIME`, `RETRANS_TIMER`, `DELAY_FIRST_PROBE_TIME` and the numbers of questions (RFC 4861 §10).
const REACHABLE: Duration = Duration::from_secs(30);
const ASK_AGAIN: Duration = Duration::from_secs(1);
const PROBE_DELAY: Duration = Duration::from_secs(5);
const QUESTIONS_MAX: u8 = 3;

/// What is known of a neighbour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Frames go there.
    At(Mac),
    /// It was asked for.
    Asking,
}

/// How a link address was learnt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Learnt {
    /// It answered our question.
    Answer,
    /// It answered, and says that another's word counts more (an advertisement without the override flag).
    SecondAnswer,
    /// It asked for one of our addresses.
    Asker,
    /// It said so to everybody.
    Gossip,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Incomplete { asked: u8, due: Instant },
    Reachable { until: Instant },
    Stale,
    Probe { asked: u8, due: Instant },
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    addr: IpAddr,
    /// Means nothing while incomplete.
    mac: Mac,
    state: State,
    used: Instant,
}

/// The cache.
#[derive(Debug, Default)]
pub struct Neighbours {
    entries: Vec<Entry>,
    news: bool,
}

impl Neighbours {
    fn find(&mut self, addr: IpAddr) -> Option<&mut Entry> {
        self.entries.iter_mut().find(|entry| entry.addr == addr)
    }

    fn insert(&mut self, entry: Entry) {
        if self.entries.len() >= ENTRIES_MAX {
            let oldest = self.entries.iter().enumerate().min_by_key(|(_, entry)| entry.used);
            if let Some((at, _)) = oldest {
                self.entries.swap_remove(at);
            }
        }
        self.entries.push(entry);
    }

    /// A frame is to go to `addr`.
    pub fn want(&mut self, now: Instant, addr: IpAddr) -> Answer {
        let Some(entry) = self.find(addr) else {
            let state = State::Incomplete { asked: 0, due: now };
            self.insert(Entry { addr, mac: [0; 6], state, used: now });
            return Answer::Asking;
        };
        entry.used = now;
        match entry.state {
            State::Incomplete { .. } => return Answer::Asking,
            State::Reachable { until } if now < until => {}
            State::Reachable { .. } | State::Stale => {
                entry.state = State::Probe { asked: 0, due: now + PROBE_DELAY };
            }
            State::Probe { .. } => {}
        }
        Answer::At(entry.mac)
    }

    /// Where `addr` is, as far as that is known; no use of it.
    #[must_use]
    pub fn at(&self, addr: IpAddr) -> Option<Mac> {
        let known = |entry: &&Entry| !matches!(entry.state, State::Incomplete { .. });
        self.entries.iter().find(|entry| entry.addr == addr).filter(known).map(|entry| entry.mac)
    }

    /// Something that was sent to `addr` was not answered.
    pub fn doubt(&mut self, now: Instant, addr: IpAddr) {
        if let Some(entry) = self.find(addr) {
            // One that answered a moment ago is there; what was lost was lost elsewhere.
            let fresh =
                matches!(entry.state, State::Reachable { until } if now + REACHABLE < until + ASK_AGAIN);
            match entry.state {
                State::Reachable { .. } | State::Stale if !fresh => {
                    entry.state = State::Probe { asked: 0, due: now };
                }
                State::Probe { asked: 0, due } if due > now => {
                    entry.state = State::Probe { asked: 0, due: now };
                }
                _ => {}
            }
        }
    }

    /// `addr` is said to be at `mac`.
    pub fn learn(&mut self, now: Instant, addr: IpAddr, mac: Mac, learnt: Learnt) {
        let reachable = State::Reachable { until: now + REACHABLE };
        let Some(entry) = self.find(addr) else {
            // RFC 4861 §7.2.5: an answer to no question is thrown away; so is gossip about strangers (RFC 826).
            if learnt == Learnt::Asker {
                self.insert(Entry { addr, mac, state: State::Stale, used: now });
            }
            return;
        };
        let incomplete = matches!(entry.state, State::Incomplete { .. });
        let same = !incomplete && entry.mac == mac;
        let answered = matches!(learnt, Learnt::Answer | Learnt::SecondAnswer);
        if !incomplete && !same && learnt == Learnt::SecondAnswer {
            // RFC 4861 §7.2.5: no override: what is known is kept, and asked for again before it is trusted.
            if matches!(entry.state, State::Reachable { .. }) {
                entry.state = State::Stale;
            }
            return;
        }
        if answered {
            entry.state = reachable;
        } else if !same {
            entry.state = State::Stale;
        }
        entry.mac = mac;
        self.news |= !same;
    }

    /// The next question that is due: for whom, and to whom alone if there is an address to confirm.
    pub fn poll_ask(&mut self, now: Instant) -> Option<(IpAddr, Option<Mac>)> {
        let is_due = |entry: &Entry| due(entry).is_some_and(|due| due <= now);
        while let Some(at) = self.entries.iter().position(is_due) {
            let entry = &mut self.entries[at];
            let next = now + ASK_AGAIN;
            match entry.state {
                State::Incomplete { asked, .. } if asked < QUESTIONS_MAX => {
                    entry.state = State::Incomplete { asked: asked + 1, due: next };
                    return Some((entry.addr, None));
                }
                State::Probe { asked, .. } if asked < QUESTIONS_MAX => {
                    entry.state = State::Probe { asked: asked + 1, due: next };
                    return Some((entry.addr, Some(entry.mac)));
                }
                // It is not where it was: perhaps it is somewhere else.
                State::Probe { .. } => {
                    entry.state = State::Incomplete { asked: 1, due: next };
                    return Some((entry.addr, None));
                }
                // Nobody. Whoever wants it next asks anew.
                _ => {
                    self.entries.swap_remove(at);
                }
            }
        }
        None
    }

    /// When [`Self::poll_ask`] has something next.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        self.entries.iter().filter_map(due).min()
    }

    /// Whether somebody has a new link address since the last call.
    pub fn take_news(&mut self) -> bool {
        std::mem::take(&mut self.news)
    }
}

fn due(entry: &Entry) -> Option<Instant> {
    match entry.state {
        State::Incomplete { due, .. } | State::Probe { due, .. } => Some(due),
        State::Reachable { .. } | State::Stale => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: IpAddr = IpAddr::v4([10, 0, 0, 1]);
    const HERE: Mac = [2, 0, 0, 0, 0, 1];
    const THERE: Mac = [2, 0, 0, 0, 0, 2];

    fn at(ms: u64) -> Instant {
        Instant::from_millis(ms)
    }

    fn known() -> Neighbours {
        let mut all = Neighbours::default();
        assert_eq!(all.want(at(0), A), Answer::Asking);
        assert_eq!(all.poll_ask(at(0)), Some((A, None)));
        all.learn(at(1), A, HERE, Learnt::Answer);
        assert!(all.take_news() && !all.take_news());
        all
    }

    #[test]
    fn a_stranger_is_asked_for_three_times() {
        let mut all = Neighbours::default();
        assert_eq!(all.want(at(0), A), Answer::Asking);
        for second in 0..3 {
            assert_eq!(all.next_deadline(), Some(at(second * 1000)));
            assert_eq!(all.poll_ask(at(second * 1000)), Some((A, None)));
            assert_eq!(all.poll_ask(at(second * 1000 + 999)), None);
            assert_eq!(all.want(at(second * 1000 + 500), A), Answer::Asking, "no question more for that");
        }
        assert_eq!((all.poll_ask(at(3000)), all.next_deadline()), (None, None));
        assert_eq!(all.want(at(3001), A), Answer::Asking);
        assert_eq!(all.poll_ask(at(3001)), Some((A, None)), "a new attempt");
    }

    #[test]
    fn an_answer_holds_for_a_while_and_is_confirmed_in_use() {
        let mut all = known();
        assert_eq!((all.want(at(29_000), A), all.next_deadline()), (Answer::At(HERE), None));
        assert_eq!(all.want(at(31_000), A), Answer::At(HERE), "stale, and good enough for now");
        assert_eq!(all.next_deadline(), Some(at(36_000)));
        assert_eq!(all.poll_ask(at(36_000)), Some((A, Some(HERE))));
        all.learn(at(36_001), A, HERE, Learnt::Answer);
        assert_eq!((all.next_deadline(), all.take_news()), (None, false));
    }

    #[test]
    fn who_is_not_where_it_was_is_looked_for_elsewhere() {
        let mut all = known();
        all.doubt(at(500), A);
        assert_eq!(all.next_deadline(), None, "it answered just now");
        all.doubt(at(5000), A);
        for n in 0..3 {
            assert_eq!(all.poll_ask(at(5000 + n * 1000)), Some((A, Some(HERE))));
            all.doubt(at(5001 + n * 1000), A);
        }
        assert_eq!(all.poll_ask(at(8000)), Some((A, None)));
        all.learn(at(8001), A, THERE, Learnt::Answer);
        assert!(all.take_news());
        assert_eq!(all.want(at(8002), A), Answer::At(THERE));
    }

    #[test]
    fn what_others_say_counts_by_how_they_say_it() {
        let mut all = known();
        all.learn(at(10), A, THERE, Learnt::SecondAnswer);
        assert_eq!(all.want(at(11), A), Answer::At(HERE), "not overridden");
        all.learn(at(12), A, THERE, Learnt::Gossip);
        assert_eq!((all.want(at(13), A), all.take_news()), (Answer::At(THERE), true));
        let stranger = IpAddr::v4([10, 0, 0, 9]);
        all.learn(at(14), stranger, HERE, Learnt::Gossip);
        all.learn(at(14), stranger, HERE, Learnt::Answer);
        assert_eq!(all.want(at(15), stranger), Answer::Asking, "nobody had asked");
        let asker = IpAddr::v4([10, 0, 0, 8]);
        all.learn(at(16), asker, HERE, Learnt::Asker);
        assert_eq!(all.want(at(17), asker), Answer::At(HERE));
    }

    #[test]
    fn it_is_bounded_and_forgets_the_least_used() {
        let mut all = known();
        let nth = |n: u16| IpAddr::v4([10, 1, n.to_be_bytes()[0], n.to_be_bytes()[1]]);
        for n in 0..2000 {
            all.learn(at(1000 + u64::from(n)), nth(n), HERE, Learnt::Asker);
            assert_eq!(all.want(at(1000 + u64::from(n)), A), Answer::At(HERE), "in use, so it stays");
        }
        assert_eq!(all.entries.len(), ENTRIES_MAX);
        assert_eq!(all.want(at(4000), nth(1999)), Answer::At(HERE));
        assert_eq!(all.want(at(4000), nth(0)), Answer::Asking);
    }
}
