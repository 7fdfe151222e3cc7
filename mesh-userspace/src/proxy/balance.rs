//! Which instance of a service a flow to its virtual IP goes to. Pure.

use std::cmp::Reverse;

use crate::catalog::{InstanceHealth, Placed};

/// At most so many instances are tried for one flow.
pub(super) const MOST_TRIES: usize = 5;

/// How far away an instance is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Distance {
    SameNode,
    SameDatacenter,
    Elsewhere,
}

/// What decides before load does; the lowest is chosen.
type Rank = (InstanceHealth, bool, Distance);

fn rank(placed: &Placed, datacenter: &str, now_ms: u64) -> Rank {
    let distance = match placed {
        Placed { own: true, .. } => Distance::SameNode,
        other if other.instance.datacenter == datacenter => Distance::SameDatacenter,
        _ => Distance::Elsewhere,
    };
    (placed.instance.health, placed.load.is_shunned(now_ms), distance)
}

/// Returns the index of the instance to try next; `None` when all of `instances` were `tried`.
///
/// The healthy before those that are not known to be, and these before the ill; of equals, those that just failed last;
/// of equals, the nearest. What remains shares the load: of two of them taken at random the one with fewer live flows
/// for its weight.
pub(super) fn choose(
    instances: &[Placed],
    tried: &[usize],
    datacenter: &str,
    now_ms: u64,
    random: u64,
) -> Option<usize> {
    let left = || (0..instances.len()).filter(|index| !tried.contains(index));
    let rank = |index: &usize| rank(&instances[*index], datacenter, now_ms);
    let best = left().map(|index| rank(&index)).min()?;
    // Another flow may change a rank meanwhile: then whatever is left will do.
    let equal = || left().filter(|index| rank(index) == best);
    let count = equal().count() as u64;
    if count < 2 {
        return equal().chain(left()).next();
    }
    let (first, step) = ((random >> 32) % count, 1 + (random & 0xffff_ffff) % (count - 1));
    let pick = |number: u64| equal().nth((number % count) as usize);
    let two = [pick(first), pick(first + step)];
    two.into_iter().flatten().min_by_key(|index| cost(&instances[*index])).or_else(|| left().next())
}

/// Flows for each unit of weight once one more is there, in thousandths; of the idle, the weightiest.
fn cost(placed: &Placed) -> (u64, Reverse<u32>) {
    let weight = u64::from(placed.instance.weight.max(1));
    let flows = u64::from(placed.load.live());
    ((flows + 1) * 1000 / weight, Reverse(placed.instance.weight))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::catalog::{Instance, Load};

    fn placed(node: &str) -> Placed {
        let instance = Instance::testing("db", node, "10.0.0.2:5432");
        Placed { instance: Arc::new(instance), load: Arc::new(Load::default()), own: false }
    }

    fn with(placed: Placed, edit: impl FnOnce(&mut Instance)) -> Placed {
        let mut instance = Instance::clone(&placed.instance);
        edit(&mut instance);
        Placed { instance: Arc::new(instance), ..placed }
    }

    #[test]
    fn the_nearest_healthy_is_taken_and_what_is_ill_comes_last() {
        let far = with(placed("c"), |i| i.datacenter = "dc2".to_owned());
        let near = placed("b");
        let own = Placed { own: true, ..placed("a") };
        let ill = with(own.clone(), |i| i.health = InstanceHealth::Critical);
        let left = with(placed("d"), |i| i.health = InstanceHealth::Gone);
        let all = [ill, far, left, near, own];
        let mut tried = Vec::new();
        while let Some(next) = choose(&all, &tried, "dc1", 0, 7) {
            tried.push(next);
        }
        assert_eq!(tried, [4, 3, 1, 2, 0]);
    }

    #[test]
    fn one_that_just_failed_is_tried_after_the_other_healthy_ones_and_before_the_ill() {
        let near = placed("b");
        near.load.failed(0);
        let all = [
            near,
            with(placed("c"), |i| i.datacenter = "dc2".to_owned()),
            with(placed("d"), |i| i.health = InstanceHealth::Critical),
        ];
        assert_eq!(choose(&all, &[], "dc1", 1, 0), Some(1));
        assert_eq!(choose(&all, &[1], "dc1", 1, 0), Some(0));
        assert_eq!(choose(&all, &[], "dc1", 60_000, 0), Some(0));
    }

    #[test]
    fn of_two_the_one_with_fewer_flows_for_its_weight_is_taken() {
        let (busy, idle) = (placed("a"), placed("b"));
        let _flow = busy.load.enter();
        for random in [0, 1, u64::MAX, 1 << 32] {
            assert_eq!(choose(&[busy.clone(), idle.clone()], &[], "dc1", 0, random), Some(1));
        }
        let heavy = with(busy.clone(), |i| i.weight = 3);
        assert_eq!(choose(&[heavy, idle], &[], "dc1", 0, 0), Some(0));
    }

    #[test]
    fn equal_instances_share_the_load_evenly() {
        let all = [placed("a"), placed("b"), placed("c")];
        let mut flows = Vec::new();
        for _ in 0..300 {
            let index = choose(&all, &[], "dc1", 0, rand::random()).unwrap();
            flows.push(all[index].load.enter());
        }
        // The difference that two choices leave is a few flows at most (log log n).
        assert!(all.iter().all(|p| (90..=110).contains(&p.load.live())), "{all:?}");
    }

    proptest! {
        #[test]
        fn each_instance_is_tried_once_and_then_there_is_none(count in 0_usize..12, randoms in prop::collection::vec(any::<u64>(), 13)) {
            let all: Vec<_> = (0..count).map(|n| placed(&format!("n{n}"))).collect();
            let mut tried = Vec::new();
            for random in randoms {
                match choose(&all, &tried, "dc1", 0, random) {
                    Some(next) => {
                        prop_assert!(next < count && !tried.contains(&next));
                        tried.push(next);
                    }
                    None => prop_assert_eq!(tried.len(), count),
                }
            }
            prop_assert_eq!(tried.len(), count);
        }
    }
}
