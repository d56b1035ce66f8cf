//! How many challenge ACKs a stack sends in a second, over all connections (RFC 5961 §7).
//!
//! A fixed number would tell an attacker who shares it whether somebody else's segment was answered (CVE-2016-5696), so
//! the number changes from second to second, by the stack's secret.

use crate::isn::Secret;
use crate::time::Instant;

/// Challenge ACKs of a second, on average.
pub const CHALLENGES_PER_SECOND: u32 = 1_000;

/// The count of one stack (one shard).
#[derive(Clone, Copy, Debug, Default)]
pub struct ChallengeLimit {
    second: u64,
    left: u32,
}

impl ChallengeLimit {
    /// True if another challenge ACK may leave; it is counted then.
    pub fn admit(&mut self, secret: &Secret, now: Instant) -> bool {
        // Never zero, so that the first second is a new one, too.
        let second = now.as_nanos() / 1_000_000_000 + 1;
        if second != self.second {
            self.second = second;
            // Between half of the average and one and a half.
            let extra = secret.challenge_noise(second) % u64::from(CHALLENGES_PER_SECOND + 1);
            self.left = CHALLENGES_PER_SECOND / 2 + extra as u32;
        }
        let admitted = self.left > 0;
        self.left = self.left.saturating_sub(1);
        admitted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admitted(limit: &mut ChallengeLimit, secret: &Secret, second: u64) -> u32 {
        let now = Instant::from_millis(second * 1_000 + 1);
        (0..10_000).map(|_| u32::from(limit.admit(secret, now))).sum()
    }

    #[test]
    fn some_in_each_second_and_never_as_many_as_before() {
        let secret = Secret::new(1, 2);
        let mut limit = ChallengeLimit::default();
        let counts: [u32; 8] = core::array::from_fn(|second| admitted(&mut limit, &secret, second as u64));
        assert!(counts.iter().all(|count| (500..=1_500).contains(count)), "{counts:?}");
        assert!(counts.windows(2).all(|pair| pair[0] != pair[1]), "{counts:?}");
        let other = admitted(&mut ChallengeLimit::default(), &Secret::new(3, 4), 0);
        assert_ne!(other, counts[0], "another stack, another number");
    }
}
