//! How load spreads over priorities: by health, with overprovisioning, spill-over, degraded hosts and panic.

/// What a level has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Stock {
    pub(super) hosts: u64,
    pub(super) healthy: u64,
    pub(super) degraded: u64,
    /// Not yet checked: they count for nothing.
    pub(super) excluded: u64,
    /// The same in weights, where `weighted_priority_health` counts these.
    pub(super) weights: Option<Weights>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Weights {
    pub(super) total: u64,
    pub(super) healthy: u64,
    pub(super) degraded: u64,
}

/// What a level gets, in percent of all load.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Load {
    pub(super) healthy: u8,
    pub(super) degraded: u8,
    /// All hosts are used, whatever their health.
    pub(super) panic: bool,
}

/// How much of all load a level could take, in percent: its health, with overprovisioning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Available {
    pub(super) healthy: u64,
    pub(super) degraded: u64,
}

/// A level's part of a retry's load, in percent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Shares {
    pub(super) healthy: u8,
    pub(super) degraded: u8,
}

impl Available {
    pub(super) fn of(level: &Stock, overprovisioning: u32) -> Self {
        Self {
            healthy: availability(level.healthy_of_total(), overprovisioning),
            degraded: availability(level.degraded_of_total(), overprovisioning),
        }
    }
}

/// As [`spread`] does it where there is something, but for what rounding leaves: it is given out in the same way.
pub(super) fn share_out(levels: &[Available]) -> Vec<Shares> {
    let total = levels.iter().map(|level| level.healthy + level.degraded).sum::<u64>().min(100);
    let mut shares = vec![Shares::default(); levels.len()];
    let mut left = 100;
    while left > 0 && total > 0 {
        for (share, level) in shares.iter_mut().zip(levels) {
            share.healthy += take(&mut left, level.healthy, total);
        }
        for (share, level) in shares.iter_mut().zip(levels) {
            share.degraded += take(&mut left, level.degraded, total);
        }
    }
    shares
}

/// Integer arithmetic throughout, as Envoy's, so that the shares are the same to the percent.
pub(super) fn spread(levels: &[Stock], overprovisioning: u32, panic_threshold: f64) -> Vec<Load> {
    let share = |part: fn(&Stock) -> (u64, u64)| -> Vec<u64> {
        levels.iter().map(|level| availability(part(level), overprovisioning)).collect()
    };
    let healthy = share(Stock::healthy_of_total);
    let degraded = share(Stock::degraded_of_total);
    let total = healthy.iter().chain(&degraded).sum::<u64>().min(100);
    let mut loads = vec![Load::default(); levels.len()];
    if total > 0 {
        distribute(&mut loads, &healthy, &degraded, total);
    }
    // The threshold is a whole number in Envoy.
    panic(&mut loads, levels, total, panic_threshold.round().clamp(0.0, 100.0));
    loads
}

impl Stock {
    fn healthy_of_total(&self) -> (u64, u64) {
        self.weights.map_or((self.healthy, self.counted()), |w| (w.healthy, w.total))
    }

    fn degraded_of_total(&self) -> (u64, u64) {
        self.weights.map_or((self.degraded, self.counted()), |w| (w.degraded, w.total))
    }

    fn counted(&self) -> u64 {
        self.hosts.saturating_sub(self.excluded)
    }

    fn percent_available(&self) -> f64 {
        match self.counted() {
            0 => 0.0,
            counted => 100.0 * (self.healthy + self.degraded) as f64 / counted as f64,
        }
    }
}

fn availability((part, total): (u64, u64), overprovisioning: u32) -> u64 {
    u64::from(overprovisioning).saturating_mul(part).checked_div(total).unwrap_or(0).min(100)
}

/// Healthy hosts of all levels come before degraded ones of any.
fn distribute(loads: &mut [Load], healthy: &[u64], degraded: &[u64], total: u64) {
    let mut left = 100;
    for (load, available) in loads.iter_mut().zip(healthy) {
        load.healthy = take(&mut left, *available, total);
    }
    for (load, available) in loads.iter_mut().zip(degraded) {
        load.degraded = take(&mut left, *available, total);
    }
    // What rounding left goes to the first level that has anything.
    let rest = u8::try_from(left).unwrap_or(0);
    if let Some(first) = healthy.iter().position(|available| *available > 0) {
        loads[first].healthy += rest;
    } else if let Some(first) = degraded.iter().position(|available| *available > 0) {
        loads[first].degraded += rest;
    }
}

fn take(left: &mut u64, available: u64, total: u64) -> u8 {
    let share = (100 * available / total).min(*left);
    *left -= share;
    u8::try_from(share).unwrap_or(100)
}

fn panic(loads: &mut [Load], levels: &[Stock], total: u64, threshold: f64) {
    if threshold == 0.0 && total == 0 {
        // The shares add up to 100 all the same; the first level will find no healthy host.
        if let Some(first) = loads.first_mut() {
            first.healthy = 100;
        }
        return;
    }
    for (load, level) in loads.iter_mut().zip(levels) {
        // Enough is available elsewhere: a level alone never panics.
        load.panic = total < 100 && level.percent_available() < threshold;
    }
    if loads.iter().all(|load| load.panic) {
        spread_by_size(loads, levels);
    }
}

/// Every level panics: health says nothing any more, the number of hosts does.
fn spread_by_size(loads: &mut [Load], levels: &[Stock]) {
    let hosts: u64 = levels.iter().map(|level| level.hosts).sum();
    let mut left = 100;
    for (load, level) in loads.iter_mut().zip(levels) {
        let share = (100 * level.hosts).checked_div(hosts).unwrap_or(0);
        left -= share;
        load.healthy = u8::try_from(share).unwrap_or(100);
        load.degraded = 0;
    }
    let first = levels.iter().position(|level| level.hosts > 0).unwrap_or(0);
    if let Some(load) = loads.get_mut(first) {
        load.healthy += u8::try_from(left).unwrap_or(0);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Of a hundred hosts.
    fn level(healthy: u64, degraded: u64) -> Stock {
        Stock { hosts: 100, healthy, degraded, ..Stock::default() }
    }

    fn shares(levels: &[Stock], overprovisioning: u32) -> Vec<(u8, u8, bool)> {
        spread(levels, overprovisioning, 50.0).iter().map(|l| (l.healthy, l.degraded, l.panic)).collect()
    }

    #[test]
    fn the_two_level_table_of_envoys_documentation() {
        for (p0, p1, want) in [
            (100, 100, (100, 0)),
            (72, 72, (100, 0)),
            (71, 71, (99, 1)),
            (50, 50, (70, 30)),
            (25, 100, (35, 65)),
        ] {
            let got = shares(&[level(p0, 0), level(p1, 0)], 140);
            assert_eq!((got[0].0, got[1].0), want, "{p0} {p1}");
            assert!(!got[0].2 && !got[1].2, "{p0} {p1}: no panic while the total is 100");
        }
        // 25 % each: 35 + 35 are normalised to the whole, and both levels panic.
        assert_eq!(shares(&[level(25, 0), level(25, 0)], 140), [(50, 0, true), (50, 0, true)]);
    }

    #[test]
    fn the_three_level_table_of_envoys_documentation() {
        for (health, want) in [
            ([100, 100, 100], [100, 0, 0]),
            ([72, 72, 100], [100, 0, 0]),
            ([71, 71, 100], [99, 1, 0]),
            ([50, 50, 100], [70, 30, 0]),
            ([25, 100, 100], [35, 65, 0]),
            ([25, 25, 100], [35, 35, 30]),
        ] {
            let got = shares(&health.map(|h| level(h, 0)), 140);
            assert_eq!(got.iter().map(|l| l.0).collect::<Vec<_>>(), want, "{health:?}");
        }
    }

    #[test]
    fn without_overprovisioning() {
        let got = shares(&[level(99, 0), level(100, 0)], 100);
        assert_eq!((got[0].0, got[1].0), (99, 1));
    }

    #[test]
    fn degraded_hosts_come_after_healthy_ones_of_all_levels() {
        for (p0, p1, want) in [
            (level(100, 0), level(100, 0), [(100, 0), (0, 0)]),
            (level(0, 100), level(100, 0), [(0, 0), (100, 0)]),
            (level(50, 50), level(0, 0), [(70, 30), (0, 0)]),
            (level(0, 100), level(0, 100), [(0, 100), (0, 0)]),
            (level(0, 50), level(0, 50), [(0, 70), (0, 30)]),
        ] {
            let got = spread(&[p0, p1], 140, 50.0);
            let got = [(got[0].healthy, got[0].degraded), (got[1].healthy, got[1].degraded)];
            assert_eq!(got, want, "{p0:?} {p1:?}");
        }
    }

    #[test]
    fn one_level_panics_alone_only_below_the_total() {
        // 20 % * 1.4 + 50 % * 1.4 = 98: the first level panics, the second does not.
        assert_eq!(shares(&[level(20, 0), level(50, 0)], 140), [(29, 0, true), (71, 0, false)]);
        assert_eq!(shares(&[level(20, 0), level(60, 0)], 140), [(28, 0, false), (72, 0, false)]);
    }

    #[test]
    fn nothing_healthy() {
        assert_eq!(shares(&[level(0, 0), level(0, 0)], 140), [(50, 0, true), (50, 0, true)]);
        assert_eq!(shares(&[Stock::default(), level(0, 0)], 140), [(0, 0, true), (100, 0, true)]);
        assert_eq!(shares(&[Stock::default()], 140), [(100, 0, true)]);
        let off = spread(&[level(0, 0), level(0, 0)], 140, 0.0);
        assert_eq!(off[0], Load { healthy: 100, degraded: 0, panic: false });
    }

    #[test]
    fn hosts_that_were_never_checked_do_not_count() {
        let stock = Stock { hosts: 10, healthy: 1, degraded: 0, excluded: 9, weights: None };
        assert_eq!(shares(&[stock, level(100, 0)], 140)[0], (100, 0, false));
    }

    #[test]
    fn weights_instead_of_numbers() {
        let weights = Some(Weights { total: 100, healthy: 25, degraded: 0 });
        let stock = Stock { weights, ..level(99, 0) };
        assert_eq!(shares(&[stock, level(100, 0)], 140)[0].0, 35);
    }

    proptest! {
        #[test]
        fn the_shares_are_a_hundred(
            raw in prop::collection::vec((0_u64..50, 0_u64..50, 0_u64..50, 0_u64..50), 1..6),
            factor in 100_u32..300,
            threshold in 0.0..100.0_f64,
        ) {
            let levels: Vec<_> = raw
                .iter()
                .map(|(healthy, degraded, sick, excluded)| Stock {
                    hosts: healthy + degraded + sick + excluded,
                    healthy: *healthy,
                    degraded: *degraded,
                    excluded: *excluded,
                    weights: None,
                })
                .collect();
            let loads = spread(&levels, factor, threshold);
            let sum: u32 = loads.iter().map(|l| u32::from(l.healthy) + u32::from(l.degraded)).sum();
            prop_assert_eq!(sum, 100);
        }
    }
}
