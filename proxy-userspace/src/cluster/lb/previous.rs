//! `envoy.retry_priorities.previous_priorities`: a retry's load goes to the priorities that its request has not tried.

use super::priority::{Available, Shares, share_out};
use crate::cluster::host::Host;

/// Of one request.
#[derive(Debug)]
pub struct PreviousPriorities {
    /// After so many attempts it is seen anew which priorities are left.
    every: usize,
    /// The priority of each attempt's host, since all of them were tried.
    attempted: Vec<u32>,
    excluded: Vec<bool>,
    shares: Vec<Shares>,
}

impl PreviousPriorities {
    pub fn new(update_frequency: u32) -> Self {
        let every = usize::try_from(update_frequency).unwrap_or(usize::MAX).max(1);
        Self { every, attempted: Vec::new(), excluded: Vec::new(), shares: Vec::new() }
    }

    pub fn attempted(&mut self, host: &Host) {
        self.attempted.push(host.priority());
    }

    /// None: as any request's.
    pub(super) fn shares(&mut self, levels: &[Available]) -> Option<&[Shares]> {
        if self.attempted.len() < self.every {
            return None;
        }
        if self.attempted.len().is_multiple_of(self.every) {
            self.exclude(levels.len());
            let mut left = self.left(levels);
            if is_empty(&left) {
                // All were tried, or those that were not have nobody: from the beginning.
                self.excluded.fill(false);
                self.attempted.clear();
                left = self.left(levels);
            }
            if is_empty(&left) {
                return None;
            }
            self.shares = share_out(&left);
        }
        // As many levels as there were when it was last seen to.
        (self.shares.len() == levels.len()).then_some(&*self.shares)
    }

    fn exclude(&mut self, levels: usize) {
        if self.excluded.len() < levels {
            self.excluded.resize(levels, false);
        }
        for priority in &self.attempted {
            if let Some(excluded) = self.excluded.get_mut(*priority as usize) {
                *excluded = true;
            }
        }
    }

    fn left(&self, levels: &[Available]) -> Vec<Available> {
        let excluded = self.excluded.iter().chain(std::iter::repeat(&false));
        let left = levels.iter().zip(excluded);
        left.map(|(level, excluded)| if *excluded { Available::default() } else { *level }).collect()
    }
}

fn is_empty(levels: &[Available]) -> bool {
    levels.iter().all(|level| level.healthy == 0 && level.degraded == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn healthy(levels: &[u64]) -> Vec<Available> {
        levels.iter().map(|healthy| Available { healthy: *healthy, degraded: 0 }).collect()
    }

    fn after(every: u32, attempts: &[u32]) -> PreviousPriorities {
        PreviousPriorities { attempted: attempts.to_vec(), ..PreviousPriorities::new(every) }
    }

    fn found(state: &mut PreviousPriorities, levels: &[Available]) -> Option<Vec<(u8, u8)>> {
        state.shares(levels).map(|all| all.iter().map(|share| (share.healthy, share.degraded)).collect())
    }

    #[test]
    fn what_was_tried_gets_nothing() {
        for (attempts, levels, want) in [
            (&[0][..], &[100, 100][..], &[0, 100][..]),
            (&[1], &[100, 100], &[100, 0]),
            (&[0], &[100, 100, 100], &[0, 100, 0]),
            (&[0, 1], &[100, 100, 100], &[0, 0, 100]),
            // What is left is scaled up, and what rounding leaves goes to the first that has anything.
            (&[0], &[100, 30, 30], &[0, 50, 50]),
            (&[0], &[100, 20, 10], &[0, 67, 33]),
            (&[0], &[100, 60, 100], &[0, 60, 40]),
            // Nobody is there to take its place.
            (&[0], &[100, 0], &[100, 0]),
            (&[0, 1], &[100, 100], &[100, 0]),
            (&[7], &[70, 30], &[70, 30]),
        ] {
            let got = found(&mut after(1, attempts), &healthy(levels)).unwrap();
            let want: Vec<_> = want.iter().map(|share| (*share, 0)).collect();
            assert_eq!(got, want, "{attempts:?} {levels:?}");
        }
    }

    #[test]
    fn degraded_hosts_take_what_the_healthy_of_other_levels_leave() {
        let level = |healthy, degraded| Available { healthy, degraded };
        for (levels, want) in [
            ([level(100, 0), level(0, 100)], [(0, 0), (0, 100)]),
            ([level(100, 0), level(70, 70)], [(0, 0), (70, 30)]),
            ([level(0, 100), level(30, 0)], [(0, 0), (100, 0)]),
        ] {
            assert_eq!(found(&mut after(1, &[0]), &levels).unwrap(), want, "{levels:?}");
        }
    }

    #[test]
    fn only_after_every_so_many_attempts() {
        let levels = healthy(&[100, 100, 100]);
        let mut state = PreviousPriorities::new(2);
        let mut next = |priority| {
            state.attempted.push(priority);
            found(&mut state, &levels).map(|all| all.iter().position(|share| share.0 == 100))
        };
        let steps: Vec<_> = [0, 0, 1, 1, 2, 2, 0, 0].into_iter().map(&mut next).collect();
        // After the sixth attempt all were tried: it begins anew, and the seventh is the first again.
        let at = |index| Some(Some(index));
        assert_eq!(steps, [None, at(1), at(1), at(2), at(2), at(0), None, at(1)]);
    }

    #[test]
    fn nobody_is_anywhere() {
        assert_eq!(found(&mut after(1, &[0]), &healthy(&[0, 0])), None);
        assert_eq!(found(&mut after(1, &[0]), &[]), None);
    }

    #[test]
    fn levels_that_come_and_go() {
        let mut state = after(2, &[0, 0]);
        assert_eq!(found(&mut state, &healthy(&[100, 100])).unwrap(), [(0, 0), (100, 0)]);
        state.attempted.push(1);
        assert_eq!(found(&mut state, &healthy(&[100, 100, 100])), None, "until it is seen anew");
        state.attempted.push(1);
        assert_eq!(found(&mut state, &healthy(&[100, 100, 100])).unwrap(), [(0, 0), (0, 0), (100, 0)]);
        state.attempted.extend([2, 2]);
        assert_eq!(found(&mut state, &healthy(&[100])).unwrap(), [(100, 0)]);
    }
}
