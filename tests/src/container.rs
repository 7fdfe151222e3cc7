//! A container as far as the mesh can tell: a network namespace of its own inside a host, and a cgroup below the host's.

use std::{
    net::{IpAddr, Ipv4Addr},
    process::{Child, Command},
};

use crate::{
    host::{Host, LIMIT},
    net::ip_batch,
    process::{Output, run},
    space::{Enter, start_keeper, tool},
};

/// Joined to its host by a veth pair: 10.78.N.1 is the host's end, 10.78.N.2 the container's. Ends with the host.
#[derive(Debug)]
pub struct Container {
    keeper: Child,
    enter: Enter,
    cgroup: crate::cgroup::Cgroup,
    pub v4: Ipv4Addr,
    /// The host's address on the pair.
    pub gateway: Ipv4Addr,
}

impl Container {
    /// Makes the `n`th container of `host`, its processes being in the cgroup `cgroup`.
    #[track_caller]
    pub fn new(host: &Host, n: u8, cgroup: &str) -> Self {
        let mut command = host.space().command(cgroup, tool("keeper"));
        command.arg("container");
        let keeper = start_keeper(command);
        let enter = host.space().enter().with_network_of(keeper.id());
        let cgroup = host.space().cgroup().child(cgroup);
        ip_batch(
            host.space().command("", "ip"),
            &format!(
                "link add ctr{n} type veth peer name eth0 netns {}\n\
                 addr add 10.78.{n}.1/24 dev ctr{n}\nlink set ctr{n} up\n",
                keeper.id()
            ),
        );
        ip_batch(
            enter.command(&cgroup, "ip"),
            &format!(
                "link set lo up\naddr add 10.78.{n}.2/24 dev eth0\nlink set eth0 up\n\
                 route add default via 10.78.{n}.1\n"
            ),
        );
        let [v4, gateway] = [2, 1].map(|end| Ipv4Addr::new(10, 78, n, end));
        Self { keeper, enter, cgroup, v4, gateway }
    }

    #[track_caller]
    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = self.enter.command(&self.cgroup, words[0]);
        command.args(&words[1..]);
        command
    }

    /// The way into the container's network namespace, for programs in other cgroups of `host`.
    #[track_caller]
    pub fn enter_as(&self, host: &Host) -> Enter {
        host.space().enter().with_network_of(self.keeper.id())
    }

    #[track_caller]
    pub fn run(&self, words: &[&str]) -> Output {
        run(self.command(words), None, LIMIT)
    }

    #[track_caller]
    pub fn probe(&self, words: &[&str]) -> Output {
        let probe = tool("probe");
        let mut all = vec![probe.to_str().expect("cargo's paths are UTF-8")];
        all.extend(words);
        self.run(&all)
    }

    /// The process that keeps the namespace.
    pub fn pid(&self) -> u32 {
        self.keeper.id()
    }

    pub fn ip(&self) -> IpAddr {
        self.v4.into()
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let _ = self.keeper.kill();
        let _ = self.keeper.wait();
    }
}
