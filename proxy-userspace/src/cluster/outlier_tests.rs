use std::time::Duration;

use proxy_config::model;
use proxy_config::model::cluster::{Enforced, FailurePercentage, OutlierDetection, SuccessRate};
use tokio::time::{advance, sleep};

use super::*;
use crate::cluster::testing::*;

/// Envoy's defaults.
fn config() -> OutlierDetection {
    OutlierDetection {
        interval: Duration::from_secs(10),
        base_ejection_time: Duration::from_secs(30),
        max_ejection_time: Duration::from_secs(300),
        max_ejection_time_jitter: Duration::ZERO,
        max_ejection_percent: 50,
        always_eject_one_host: false,
        split_external_local_origin_errors: false,
        successful_active_health_check_uneject_host: true,
        consecutive_5xx: Enforced { threshold: 5, enforcing: 100 },
        consecutive_gateway_failure: Enforced { threshold: 5, enforcing: 0 },
        consecutive_local_origin_failure: Enforced { threshold: 5, enforcing: 100 },
        success_rate: SuccessRate {
            enforcing: 100,
            enforcing_local_origin: 100,
            minimum_hosts: 5,
            request_volume: 100,
            stdev_factor: 1900,
        },
        failure_percentage: FailurePercentage {
            threshold: 85,
            enforcing: 0,
            enforcing_local_origin: 0,
            minimum_hosts: 5,
            request_volume: 50,
        },
    }
}

struct Rig {
    cluster: Arc<Cluster>,
    env: Env,
}

impl Rig {
    fn new(config: OutlierDetection, hosts: usize) -> Self {
        let env = env();
        let model =
            model::Cluster { outlier_detection: Some(Box::new(config)), ..model(weighted(&vec![1; hosts])) };
        let cluster = Cluster::new(Arc::new(model), &env).unwrap();
        cluster.start(&env);
        Self { cluster, env }
    }

    fn report(&self, host: usize, event: Event, times: usize) {
        for _ in 0..times {
            self.cluster.report(&self.cluster.hosts()[host], event);
        }
    }

    fn ejected(&self) -> Vec<usize> {
        let hosts = self.cluster.hosts();
        (0..hosts.len()).filter(|i| hosts[*i].has(HealthFlag::FAILED_OUTLIER_CHECK)).collect()
    }

    fn stat(&self, name: &str) -> u64 {
        self.env.stats.value(&format!("cluster.c.outlier_detection.{name}")).unwrap()
    }
}

/// Lets the interval's task run.
async fn pass(seconds: u64) {
    // It must have begun to sleep before time moves.
    tokio::task::yield_now().await;
    for _ in 0..seconds {
        advance(Duration::from_secs(1)).await;
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn failed_connections_eject_for_a_while_and_longer_the_second_time() {
    let rig = Rig::new(config(), 4);
    rig.report(0, Event::ConnectFailed, 4);
    rig.report(0, Event::Connected(Duration::ZERO), 1);
    rig.report(0, Event::ConnectTimeout, 4);
    assert!(rig.ejected().is_empty());
    rig.report(0, Event::ConnectFailed, 1);
    assert_eq!(rig.ejected(), [0]);
    assert!(!ports(&rig.cluster, 50).contains(&1));
    assert_eq!(rig.cluster.hosts()[0].health_flags(), "/failed_outlier_check");
    for name in ["ejections_active", "ejections_enforced_consecutive_5xx", "ejections_enforced_total"] {
        assert_eq!(rig.stat(name), 1, "{name}");
    }
    pass(29).await;
    assert_eq!(rig.ejected(), [0]);
    pass(1).await;
    assert!(rig.ejected().is_empty());
    assert_eq!(rig.stat("ejections_active"), 0);
    rig.report(0, Event::ConnectFailed, 5);
    pass(45).await;
    assert_eq!(rig.ejected(), [0], "twice as long");
    pass(25).await;
    assert!(rig.ejected().is_empty());
}

#[tokio::test(start_paused = true)]
async fn no_more_than_the_maximum() {
    let rig = Rig::new(config(), 4);
    for host in 0..3 {
        rig.report(host, Event::Status(500), 5);
    }
    assert_eq!(rig.ejected(), [0, 1]);
    assert_eq!(rig.stat("ejections_overflow"), 1);
    let small = Rig::new(OutlierDetection { max_ejection_percent: 10, ..config() }, 4);
    small.report(0, Event::Status(500), 5);
    assert!(small.ejected().is_empty());
    let one = OutlierDetection { max_ejection_percent: 10, always_eject_one_host: true, ..config() };
    let one = Rig::new(one, 4);
    one.report(0, Event::Status(500), 5);
    one.report(1, Event::Status(500), 5);
    assert_eq!(one.ejected(), [0]);
}

#[tokio::test(start_paused = true)]
async fn local_and_external_errors_apart() {
    let split = OutlierDetection { split_external_local_origin_errors: true, ..config() };
    let rig = Rig::new(split, 4);
    rig.report(0, Event::ConnectFailed, 4);
    rig.report(0, Event::Status(503), 4);
    assert!(rig.ejected().is_empty());
    rig.report(0, Event::ConnectFailed, 1);
    assert_eq!(rig.ejected(), [0]);
    assert_eq!(rig.stat("ejections_enforced_consecutive_local_origin_failure"), 1);
    assert_eq!(rig.stat("ejections_detected_consecutive_5xx"), 0);
}

#[tokio::test(start_paused = true)]
async fn the_success_rate_against_the_others() {
    let rig = Rig::new(config(), 6);
    for host in 0..6 {
        rig.report(host, Event::Status(200), 100);
    }
    for _ in 0..50 {
        // Never five in a row.
        rig.report(5, Event::Status(500), 4);
        rig.report(5, Event::Status(200), 1);
    }
    pass(11).await;
    assert_eq!(rig.ejected(), [5]);
    assert_eq!(rig.stat("ejections_enforced_success_rate"), 1);
    assert_eq!(rig.cluster.hosts()[0].success_rate(), Some(100.0));
    pass(10).await;
    assert_eq!(rig.cluster.hosts()[0].success_rate(), None, "a quiet interval says nothing");
}

#[tokio::test(start_paused = true)]
async fn the_failure_percentage() {
    let mut config = config();
    config.failure_percentage =
        FailurePercentage { threshold: 40, enforcing: 100, ..config.failure_percentage };
    config.success_rate.enforcing = 0;
    let rig = Rig::new(config, 5);
    for host in 0..5 {
        rig.report(host, Event::Status(200), 60);
    }
    for _ in 0..20 {
        rig.report(2, Event::Status(500), 3);
        rig.report(2, Event::Status(200), 1);
    }
    pass(11).await;
    assert_eq!(rig.ejected(), [2]);
    assert_eq!(rig.stat("ejections_enforced_failure_percentage"), 1);
}

#[tokio::test(start_paused = true)]
async fn connections_of_an_ejected_host_are_told() {
    let env = env();
    let model = model::Cluster {
        outlier_detection: Some(Box::new(config())),
        close_connections_on_host_health_failure: true,
        ..model(weighted(&[1, 1]))
    };
    let cluster = Cluster::new(Arc::new(model), &env).unwrap();
    let hosts = cluster.hosts();
    let closing = hosts[0].closing();
    tokio::pin!(closing);
    tokio::select! { biased; () = &mut closing => panic!("too early"), () = sleep(Duration::from_millis(1)) => {} }
    for _ in 0..5 {
        cluster.report(&hosts[0], Event::ConnectFailed);
    }
    closing.await;
}
