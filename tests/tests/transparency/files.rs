//! Files moved by rsync's daemon, scp, and FTP with its passive data connections.

use std::path::{Path, PathBuf};

use mesh_tests::{
    config::{Service, second_port},
    fixture::Scene,
    host::Host,
    program::{listens, rsync, sshd::Sshd, vsftpd},
    require_root,
    transparency::{Ends, Outcome, Report, Stage, stage::Proof},
};

use crate::differences;

/// Makes a tree of files of many sizes below the host's scratch directory.
fn tree(host: &Host, name: &str) -> PathBuf {
    let root = host.space().scratch().join(name);
    for n in 0..60_usize {
        let dir = root.join(format!("dir-{}", n % 7));
        std::fs::create_dir_all(&dir).expect("an own directory");
        let bytes: Vec<u8> =
            (0..n * n * 300).map(|i| u8::try_from((i * 31 + n) % 251).expect("below 251")).collect();
        std::fs::write(dir.join(format!("file-{n}")), bytes).expect("an own directory");
    }
    root
}

/// The checksums of what is below `root`.
fn sums(host: &Host, root: &Path) -> Outcome {
    let command = "cd \"$0\" && find . -type f | LC_ALL=C sort | xargs sha256sum";
    Outcome::of(&host.run("", &["sh", "-c", command, root.to_str().expect("UTF-8")]))
}

#[test]
fn rsync_moves_a_tree_as_on_plain_tcp() {
    require_root!();
    let stage = Stage::start(&[("backup", 873)]);
    let _servers = stage.both(|ends| rsync::start(ends.b, "backup", 873, &tree(ends.b, "served")));
    stage.allow("backup");
    let mut report = Report::new(&[]);
    let said = stage.compare(&mut report, "rsync", "backup", Proof::Wire, |ends| {
        let remote = format!("rsync://{}/files/", ends.at(873));
        let copy = ends.a.space().scratch().join("copy");
        let copy_text = format!("{}/", copy.display());
        std::fs::create_dir_all(&copy).expect("an own directory");
        let down = || Outcome::of(&ends.run(&["rsync", "-rlp", "--checksum", "-i", &remote, &copy_text]));
        let first = down().with_part("tree", sums(ends.a, &copy));
        std::fs::write(copy.join("dir-1/file-1"), "changed on a").expect("an own directory");
        let up = ends.run(&["rsync", "-rlp", "--checksum", "-i", &copy_text, &remote]);
        Outcome::default()
            .with_part("down", first)
            .with_part("up", Outcome::of(&up))
            .with_part("served", sums(ends.b, &ends.b.space().scratch().join("served")))
            .with_part("again", down())
            .with_part("list", Outcome::of(&ends.run(&["rsync", &format!("rsync://{}/", ends.at(873))])))
    });
    assert_eq!(said.count("exit status: 0"), 6, "{said:#?}");
    report.finish();
}

#[test]
fn scp_moves_a_tree_as_on_plain_tcp() {
    require_root!();
    let stage = Stage::start(&[("shell", 2222)]);
    let servers = stage.both(|ends| Sshd::start(ends.b, "shell", 2222));
    stage.allow("shell");
    let mut report = Report::new(&[]);
    let said = stage.compare(&mut report, "scp", "shell", Proof::Wire, |ends| {
        let is_captured = std::ptr::eq(ends.b, stage.captured().b);
        let sshd = &servers[usize::from(is_captured)];
        let up = format!("root@{}:{}", ends.address(), ends.b.space().scratch().join("up").display());
        let back = ends.a.space().scratch().join("back");
        let local = tree(ends.a, "sent");
        let scp = |from: &str, to: &str| {
            let words = sshd.scp(from, to);
            Outcome::of(&ends.run(&words.iter().map(String::as_str).collect::<Vec<_>>()))
        };
        Outcome::default()
            .with_part("up", scp(local.to_str().expect("UTF-8"), &up))
            .with_part("there", sums(ends.b, &ends.b.space().scratch().join("up")))
            .with_part("down", scp(&up, back.to_str().expect("UTF-8")))
            .with_part("back", sums(ends.a, &back))
    });
    assert_eq!(said.count("exit status: 0"), 4, "{said:#?}");
    report.finish();
}

/// The server's data port is a service of the mesh, selected by the same cgroup.
const DATA: (&str, u16) = ("ftp-data", 30_000);
/// The one of a second server is not.
const UNKNOWN_DATA: u16 = 30_001;

#[test]
fn ftp_with_a_passive_data_port_that_is_a_service_works_as_on_plain_tcp() {
    require_root!();
    let services = [("ftp", 21), ("ftp-other", 2121), DATA];
    let on_b = vec![
        Service::server("ftp", 21),
        Service::server("ftp-other", 2121),
        // Nobody listens at a passive data port but while a transfer is about to begin.
        second_port("ftp", DATA).with("[service.check]\nenabled = false"),
    ];
    let stage = Stage::start_with(&services, Scene { on_b, ..Scene::new(&[]) });
    let mut servers = Vec::new();
    stage.both(|ends| {
        let root = tree(ends.b, "ftp");
        let up = root.join("up");
        std::fs::create_dir_all(&up).expect("an own directory");
        mesh_tests::program::give_to("daemon", &up);
        servers.push(vsftpd::start(ends.b, "ftp", 21, DATA.1, &root));
        servers.push(vsftpd::start(ends.b, "ftp-other", 2121, UNKNOWN_DATA, &root));
    });
    stage.mesh.a.intention("web", DATA.0, "allow");
    stage.allow("ftp");
    stage.allow("ftp-other");
    let mut report = Report::new(differences::FILES);
    let run = |ends: Ends<'_>, port: u16| {
        let base = format!("ftp://{}", ends.at(port));
        let upload = tree(ends.a, "ftp-sent").join("dir-3/file-59");
        let curl = |more: &[&str]| {
            Outcome::of(&ends.run(&[&["curl", "-sS", "--max-time", "20", "--ftp-pasv"], more].concat()))
        };
        Outcome::default()
            .with_part("list", curl(&["--list-only", &format!("{base}/dir-1/")]))
            .with_part(
                "down",
                curl(&["-w", "%{size_download}", "-o", "/dev/null", &format!("{base}/dir-3/file-59")]),
            )
            .with_part("several", curl(&[&format!("{base}/dir-1/file-1"), &format!("{base}/dir-2/file-2")]))
            .with_part("pasv", curl(&["--disable-epsv", "--list-only", &format!("{base}/dir-2/")]))
            .with_part(
                "up",
                curl(&["-T", upload.to_str().expect("UTF-8"), &format!("{base}/up/file-{port}")]),
            )
            .with_part("there", sums(ends.b, &ends.b.space().scratch().join("ftp/up")))
    };
    let said = stage.compare(&mut report, "FTP, passive", "ftp", Proof::Wire, |ends| {
        run(ends, 21).with("listens", listens(ends.b, 21).is_ok())
    });
    assert_eq!(said.count("exit status: 0"), 6, "{said:#?}");
    let capture = stage.mesh.net.capture(&stage.mesh.b.host);
    stage.compare(
        &mut report,
        "FTP, passive, data port unknown to the mesh",
        "ftp-other",
        Proof::Wire,
        |ends| run(ends, 2121),
    );
    let trace = capture.stop();
    assert_eq!(trace.count("file-1"), 0, "a name of a file was on the wire in clear");
    report.finish();
}
