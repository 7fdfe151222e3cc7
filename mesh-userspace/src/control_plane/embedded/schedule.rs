//! What has to happen to which check, and when. Pure: the clock comes in.

use std::{
    collections::{BTreeSet, HashMap},
    time::Duration,
};

use tokio::time::Instant;

use super::model::{Check, Key, Probe, Status};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Task {
    /// Nobody reported in time: critical.
    Expire,
    /// Try a TCP connection.
    Dial,
    /// Critical for too long: deregister the service.
    Reap,
}

#[derive(Default)]
pub struct Schedule {
    by_time: BTreeSet<(Instant, Key, Task)>,
    times: HashMap<(Key, Task), Instant>,
}

impl Schedule {
    pub fn set(&mut self, key: &Key, task: Task, at: Instant) {
        self.cancel(key, task);
        self.times.insert((key.clone(), task), at);
        self.by_time.insert((at, key.clone(), task));
    }

    pub fn cancel(&mut self, key: &Key, task: Task) {
        if let Some(at) = self.times.remove(&(key.clone(), task)) {
            self.by_time.remove(&(at, key.clone(), task));
        }
    }

    fn has(&self, key: &Key, task: Task) -> bool {
        self.times.contains_key(&(key.clone(), task))
    }

    /// Returns when the next task is due.
    pub fn next(&self) -> Option<Instant> {
        self.by_time.first().map(|(at, _, _)| *at)
    }

    /// Takes out what is due at `now`.
    pub fn due(&mut self, now: Instant) -> Vec<(Key, Task)> {
        let mut due = Vec::new();
        while self.by_time.first().is_some_and(|(at, _, _)| *at <= now) {
            let Some((_, key, task)) = self.by_time.pop_first() else { break };
            self.times.remove(&(key.clone(), task));
            due.push((key, task));
        }
        due
    }

    /// Plans for a check that was written, or (`None`) deleted. Its first dial waits for `stagger`, a service that it
    /// condemns for `min_reap` at least.
    pub fn plan(
        &mut self,
        key: &Key,
        check: Option<&Check>,
        now: Instant,
        stagger: Duration,
        min_reap: Duration,
    ) {
        match check.map(|check| &check.probe) {
            Some(Probe::Ttl { period_ms }) => {
                self.set(key, Task::Expire, now + Duration::from_millis(*period_ms));
            }
            _ => self.cancel(key, Task::Expire),
        }
        match check.map(|check| &check.probe) {
            Some(Probe::Tcp { .. }) if self.has(key, Task::Dial) => {}
            Some(Probe::Tcp { .. }) => self.set(key, Task::Dial, now + stagger),
            _ => self.cancel(key, Task::Dial),
        }
        let condemned = check.filter(|check| check.status == Status::Critical);
        match condemned.and_then(|check| check.deregister_after_ms) {
            Some(_) if self.has(key, Task::Reap) => {}
            Some(after) => self.set(key, Task::Reap, now + Duration::from_millis(after).max(min_reap)),
            None => self.cancel(key, Task::Reap),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(probe: Probe, status: Status) -> Check {
        Check {
            node: "n".into(),
            id: "c".into(),
            name: String::new(),
            status,
            notes: String::new(),
            output: String::new(),
            service_id: "s".into(),
            service_name: "s".into(),
            service_tags: Vec::new(),
            probe,
            deregister_after_ms: Some(5_000),
            create_index: 0,
            modify_index: 0,
        }
    }

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_report_puts_the_expiry_off() {
        let (mut schedule, key, start) = (Schedule::default(), Key::new("n", "c"), Instant::now());
        let check = check(Probe::Ttl { period_ms: 10_000 }, Status::Passing);
        schedule.plan(&key, Some(&check), start, SECOND, SECOND);
        schedule.plan(&key, Some(&check), start + 9 * SECOND, SECOND, SECOND);
        assert!(schedule.due(start + 18 * SECOND).is_empty());
        assert_eq!(schedule.due(start + 19 * SECOND), [(key, Task::Expire)]);
    }

    #[test]
    fn a_service_is_reaped_only_while_its_check_stays_critical() {
        let (mut schedule, key, start) = (Schedule::default(), Key::new("n", "c"), Instant::now());
        let critical = check(Probe::External, Status::Critical);
        schedule.plan(&key, Some(&critical), start, SECOND, SECOND);
        // Written again, still critical: the clock goes on from the first time.
        schedule.plan(&key, Some(&critical), start + 4 * SECOND, SECOND, SECOND);
        assert_eq!(schedule.due(start + 5 * SECOND), [(key.clone(), Task::Reap)]);
        schedule.plan(&key, Some(&critical), start, SECOND, SECOND);
        let passing = check(Probe::External, Status::Passing);
        schedule.plan(&key, Some(&passing), start + SECOND, SECOND, SECOND);
        assert_eq!(schedule.next(), None);
    }

    #[test]
    fn a_short_deregistration_time_is_raised_to_the_minimum() {
        let (mut schedule, key, start) = (Schedule::default(), Key::new("n", "c"), Instant::now());
        let critical = check(Probe::External, Status::Critical);
        schedule.plan(&key, Some(&critical), start, SECOND, 60 * SECOND);
        assert_eq!(schedule.next(), Some(start + 60 * SECOND));
    }

    #[test]
    fn nothing_is_left_of_a_deleted_check() {
        let (mut schedule, key, start) = (Schedule::default(), Key::new("n", "c"), Instant::now());
        for probe in [
            Probe::Ttl { period_ms: 1 },
            Probe::Tcp { address: String::new(), interval_ms: 1, timeout_ms: 1 },
        ] {
            schedule.plan(&key, Some(&check(probe, Status::Critical)), start, SECOND, SECOND);
            schedule.plan(&key, None, start, SECOND, SECOND);
            assert_eq!(schedule.next(), None);
        }
    }
}
