//! `mynah image`: what it makes is what `qemu-img` makes, and what it says is what `qemu-img` says. Without QEMU's
//! tools the commands are only checked with one another.
#![cfg(target_os = "linux")]
mod kit;

use kit::*;
use std::path::Path;
use std::process::{Command, Output};

/// Runs `mynah image` in the folder.
fn image(folder: &Folder, args: &[&str]) -> Output {
    let mut all = vec!["image"];
    all.extend(args);
    command(&all).current_dir(folder.path("")).output().unwrap()
}

/// As [`image`], which has to succeed; what it says.
fn ok(folder: &Folder, args: &[&str]) -> String {
    let out = image(folder, args);
    let error = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{args:?}: {error}");
    String::from_utf8(out.stdout).unwrap()
}

/// As [`image`], which has to fail; why.
fn refused(folder: &Folder, args: &[&str]) -> String {
    let out = image(folder, args);
    let error = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!(out.status.code(), Some(1), "{args:?}: {error}");
    assert_eq!(error.lines().count(), 1, "{args:?}: {error}");
    error
}

fn qemu_img_there() -> bool {
    let there = Command::new("qemu-img").arg("--version").output().is_ok();
    if !there {
        eprintln!("skipped: qemu-img (qemu-utils) is not installed");
    }
    there
}

/// What `qemu-img` says.
fn qemu(folder: &Folder, args: &[&str]) -> String {
    let out = Command::new("qemu-img").args(args).current_dir(folder.path("")).output().unwrap();
    assert!(out.status.success(), "qemu-img {args:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

fn data(path: &str, len: usize) {
    let bytes: Vec<u8> =
        (0..len).map(|i| if i / 100_000 % 3 == 1 { 0 } else { (i / 50 % 251) as u8 + 1 }).collect();
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn an_image_goes_from_format_to_format_and_back() {
    let folder = Folder::new("image-convert");
    data(&folder.path("a.raw"), 5_000_192);
    for options in [
        &["-o", "compat=0.10,cluster_size=4k"][..],
        &["-o", "compression_type=zstd", "-c"],
        &["-c"],
        &["-o", "preallocation=falloc,refcount_bits=1"],
    ] {
        let mut args = vec!["convert", "-f", "raw", "-O", "qcow2", "a.raw", "b.qcow2"];
        args.splice(1..1, options.iter().copied());
        ok(&folder, &args);
        assert_eq!(ok(&folder, &["compare", "a.raw", "b.qcow2"]), "Images are identical.\n");
        assert!(ok(&folder, &["check", "b.qcow2"]).starts_with("No errors were found on the image.\n"));
        if qemu_img_there() {
            assert_eq!(qemu(&folder, &["compare", "a.raw", "b.qcow2"]), "Images are identical.\n");
            qemu(&folder, &["check", "b.qcow2"]);
        }
        ok(&folder, &["convert", "b.qcow2", "c.raw"]);
        assert!(std::fs::read(folder.path("a.raw")).unwrap() == std::fs::read(folder.path("c.raw")).unwrap());
    }
    ok(&folder, &["convert", "-f", "raw", "-O", "qcow2", "a.raw", "a.raw", "two.qcow2"]);
    assert!(ok(&folder, &["info", "two.qcow2"]).contains("(10000384 bytes)"));
    std::fs::write(folder.path("c.raw"), vec![1; 5_000_192]).unwrap();
    assert_eq!(image(&folder, &["compare", "a.raw", "c.raw"]).status.code(), Some(1));
    assert_eq!(image(&folder, &["compare", "a.raw", "none.raw"]).status.code(), Some(2));
}

#[test]
fn what_is_said_is_what_qemu_img_says() {
    if !qemu_img_there() {
        return;
    }
    let folder = Folder::new("image-says");
    data(&folder.path("a.raw"), 5_000_192);
    ok(&folder, &["convert", "-f", "raw", "-O", "qcow2", "a.raw", "base.qcow2"]);
    ok(&folder, &["snapshot", "-c", "first", "base.qcow2"]);
    ok(&folder, &["create", "-q", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", "top.qcow2"]);
    for args in [
        &["info", "base.qcow2"][..],
        &["info", "top.qcow2"],
        &["info", "--backing-chain", "top.qcow2"],
        &["info", "a.raw"],
        &["snapshot", "-l", "base.qcow2"],
        &["check", "base.qcow2"],
        &["map", "top.qcow2"],
        &["map", "--output=json", "top.qcow2"],
        &["compare", "base.qcow2", "top.qcow2"],
        &["compare", "top.qcow2", "a.raw"],
    ] {
        let (mut ours, mut theirs) = (ok(&folder, args), qemu(&folder, args));
        // We count no instructions, which QEMU shows as 0.
        if args.contains(&"base.qcow2") || args.contains(&"--backing-chain") {
            let cut = |text: &str| {
                text.lines().map(|l| l.trim_end_matches([' ', '0']).to_string() + "\n").collect()
            };
            (ours, theirs) = (cut(&ours), cut(&theirs));
        }
        assert_eq!(ours, theirs, "{args:?}");
    }
    for args in [
        &["info", "--output=json", "base.qcow2"][..],
        &["info", "--output=json", "--backing-chain", "top.qcow2"],
        &["check", "--output=json", "base.qcow2"],
    ] {
        let mut ours: serde_json::Value = serde_json::from_str(&ok(&folder, args)).unwrap();
        let mut theirs: serde_json::Value = serde_json::from_str(&qemu(&folder, args)).unwrap();
        for value in [&mut ours, &mut theirs] {
            drop_icounts(value);
        }
        assert_eq!(ours, theirs, "{args:?}");
    }
}

#[test]
fn vhdx_and_vmdk_are_made_and_told_of_as_qemu_img_does() {
    let folder = Folder::new("image-foreign");
    data(&folder.path("a.raw"), 5_000_192);
    for (format, options) in [
        ("vhdx", "block_size=2M"),
        ("vhdx", "subformat=fixed"),
        ("vmdk", "subformat=monolithicSparse"),
        ("vmdk", "subformat=monolithicFlat"),
        ("vmdk", "subformat=twoGbMaxExtentSparse,adapter_type=lsilogic"),
        ("vmdk", "subformat=twoGbMaxExtentFlat"),
        ("vmdk", "subformat=streamOptimized"),
    ] {
        ok(&folder, &["convert", "-f", "raw", "-O", format, "-o", options, "a.raw", "b.img"]);
        assert_eq!(
            ok(&folder, &["compare", "a.raw", "b.img"]),
            "Images are identical.\n",
            "{format} {options}"
        );
        assert_eq!(ok(&folder, &["check", "b.img"]), "No errors were found on the image.\n");
        if !qemu_img_there() {
            continue;
        }
        assert_eq!(
            qemu(&folder, &["compare", "a.raw", "b.img"]),
            "Images are identical.\n",
            "{format} {options}"
        );
        assert_eq!(qemu(&folder, &["check", "b.img"]), ok(&folder, &["check", "b.img"]));
        let args = &["info", "--output=json", "b.img"];
        let mut ours: serde_json::Value = serde_json::from_str(&ok(&folder, args)).unwrap();
        let mut theirs: serde_json::Value = serde_json::from_str(&qemu(&folder, args)).unwrap();
        for value in [&mut ours, &mut theirs] {
            // QEMU adds the extents' files to the descriptor's.
            value.as_object_mut().unwrap().remove("actual-size");
        }
        assert_eq!(ours, theirs, "{format} {options}");
    }
    assert!(
        refused(&folder, &["create", "-f", "vmdk", "-o", "subformat=vmfs", "c.img", "1M"]).contains("vmfs")
    );
    assert!(
        refused(&folder, &["create", "-f", "vhdx", "-o", "block_size=3M", "c.img", "1M"])
            .contains("power of two")
    );
}

#[test]
fn parts_are_copied_and_sizes_foretold() {
    let folder = Folder::new("image-dd");
    data(&folder.path("a.raw"), 5_000_192);
    ok(
        &folder,
        &["dd", "-f", "raw", "-O", "qcow2", "bs=1000", "count=3000", "skip=100", "if=a.raw", "of=b.qcow2"],
    );
    ok(&folder, &["convert", "b.qcow2", "b.raw"]);
    let (all, part) =
        (std::fs::read(folder.path("a.raw")).unwrap(), std::fs::read(folder.path("b.raw")).unwrap());
    assert!(part[..2_900_000] == all[100_000..3_000_000] && part.len() == 2_900_480);
    assert!(refused(&folder, &["dd", "if=a.raw"]).contains("of="));
    ok(&folder, &["convert", "-S", "0", "-f", "raw", "-O", "qcow2", "a.raw", "all.qcow2"]);
    assert!(ok(&folder, &["check", "all.qcow2"]).contains("= 100.00% allocated"));
    if !qemu_img_there() {
        return;
    }
    for args in [
        &["measure", "-f", "raw", "-O", "qcow2", "a.raw"][..],
        &["measure", "-f", "raw", "-O", "raw", "a.raw"],
        &["measure", "-O", "qcow2", "--size", "3T"],
        &["measure", "-O", "qcow2", "-o", "cluster_size=4k,refcount_bits=64", "--size", "100M"],
        &["measure", "-f", "qcow2", "-O", "qcow2", "b.qcow2"],
        &["measure", "--output=json", "-f", "raw", "-O", "qcow2", "a.raw"],
    ] {
        let (ours, theirs) = (ok(&folder, args), qemu(&folder, args));
        if args.contains(&"--output=json") {
            let json = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
            assert_eq!(json(&ours), json(&theirs), "{args:?}");
        } else {
            // Bitmaps, which are not copied, are not told of.
            let theirs: String =
                theirs.lines().filter(|l| !l.starts_with("bitmaps")).map(|l| format!("{l}\n")).collect();
            assert_eq!(ours, theirs, "{args:?}");
        }
    }
}

/// QEMU tells 0 of what it has not counted.
fn drop_icounts(value: &mut serde_json::Value) {
    match value {
        serde_json::Value::Array(list) => list.iter_mut().for_each(drop_icounts),
        serde_json::Value::Object(map) => {
            map.remove("icount");
            map.values_mut().for_each(drop_icounts);
        }
        _ => {}
    }
}

#[test]
fn snapshots_sizes_commits_and_rebases() {
    let folder = Folder::new("image-change");
    data(&folder.path("a.raw"), 3_000_320);
    data(&folder.path("b.raw"), 2_000_384);
    ok(&folder, &["convert", "-f", "raw", "-O", "qcow2", "a.raw", "base.qcow2"]);
    ok(&folder, &["convert", "-f", "raw", "-O", "qcow2", "b.raw", "other.qcow2"]);
    ok(&folder, &["convert", "-O", "qcow2", "base.qcow2", "keep.qcow2"]);
    ok(&folder, &["create", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", "top.qcow2", "4M"]);
    // What it holds stays, whatever it stands on.
    ok(&folder, &["convert", "-O", "raw", "top.qcow2", "before.raw"]);
    ok(&folder, &["rebase", "-b", "other.qcow2", "-F", "qcow2", "top.qcow2"]);
    assert_eq!(ok(&folder, &["compare", "top.qcow2", "before.raw"]), "Images are identical.\n");
    assert!(ok(&folder, &["info", "top.qcow2"]).contains("backing file: other.qcow2\n"));
    ok(&folder, &["commit", "top.qcow2"]);
    assert_eq!(ok(&folder, &["compare", "other.qcow2", "before.raw"]), "Images are identical.\n");
    assert!(ok(&folder, &["check", "top.qcow2"]).contains("0/64 = 0.00% allocated"));
    ok(&folder, &["rebase", "top.qcow2"]);
    assert!(!ok(&folder, &["info", "top.qcow2"]).contains("backing"));
    assert_eq!(ok(&folder, &["compare", "top.qcow2", "before.raw"]), "Images are identical.\n");
    ok(&folder, &["snapshot", "-c", "s", "keep.qcow2"]);
    ok(&folder, &["resize", "keep.qcow2", "+1M"]);
    assert!(refused(&folder, &["resize", "keep.qcow2", "1M"]).contains("--shrink"));
    ok(&folder, &["resize", "--shrink", "keep.qcow2", "1M"]);
    ok(&folder, &["convert", "-l", "s", "keep.qcow2", "then.raw"]);
    assert_eq!(
        ok(&folder, &["compare", "-s", "-f", "raw", "-F", "raw", "a.raw", "then.raw"]),
        "Images are identical.\n"
    );
    ok(&folder, &["snapshot", "-a", "s", "keep.qcow2"]);
    assert_eq!(ok(&folder, &["compare", "keep.qcow2", "base.qcow2"]), "Images are identical.\n");
    ok(&folder, &["snapshot", "-d", "s", "keep.qcow2"]);
    assert_eq!(ok(&folder, &["snapshot", "-l", "keep.qcow2"]), "");
    assert!(refused(&folder, &["snapshot", "-a", "s", "keep.qcow2"]).contains("there is no snapshot 's'"));
}

#[test]
fn damage_is_found_and_repaired() {
    let folder = Folder::new("image-check");
    data(&folder.path("a.raw"), 3_000_320);
    ok(&folder, &["convert", "-f", "raw", "-O", "qcow2", "a.raw", "a.qcow2"]);
    let path = folder.path("a.qcow2");
    let mut bytes = std::fs::read(&path).unwrap();
    // Refcounts of clusters 5 and 6, and of one that nothing uses.
    let block = 2 * 65_536;
    bytes[block + 10..block + 14].fill(0);
    bytes[block + 401] = 1;
    std::fs::write(&path, bytes).unwrap();
    let out = image(&folder, &["check", "a.qcow2"]);
    assert_eq!(out.status.code(), Some(2), "{out:?}");
    let text = ok(&folder, &["check", "--repair", "all", "a.qcow2"]);
    assert!(text.contains("1 leaked clusters") && text.contains("No errors were found"), "{text}");
    assert_eq!(
        ok(&folder, &["compare", "-f", "raw", "-F", "qcow2", "a.raw", "a.qcow2"]),
        "Images are identical.\n"
    );
    assert_eq!(image(&folder, &["check", "a.raw"]).status.code(), Some(63));
}

#[test]
fn what_cannot_be_is_refused_in_one_line() {
    let folder = Folder::new("image-refused");
    assert!(refused(&folder, &["info", "none.qcow2"]).starts_with("mynah: none.qcow2: "));
    assert!(refused(&folder, &["create", "-f", "qcow2", "a.qcow2"]).contains("size is missing"));
    assert!(
        refused(&folder, &["create", "-f", "qcow3", "a.qcow2", "1M"])
            .contains("'qcow3' images cannot be made")
    );
    assert!(
        refused(&folder, &["create", "-f", "qcow2", "-o", "cluster_size=3k", "a.qcow2", "1M"])
            .contains("power of two")
    );
    assert!(
        refused(&folder, &["create", "-f", "qcow2", "-o", "clutser=1", "a.qcow2", "1M"])
            .contains("cluster_size")
    );
    assert!(refused(&folder, &["create", "-f", "qcow2", "-b", "x", "a.qcow2", "1M"]).contains("-F"));
    // Clap says how the help is called too.
    let out = image(&folder, &["create", "-f", "qcow2", "a.qcow2", "9E"]);
    assert_eq!(out.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&out.stderr).contains("too large"));
    assert!(!Path::new(&folder.path("a.qcow2")).exists());
    assert!(ok(&folder, &["create", "-f", "qcow2", "-o", "help"]).contains("cluster_size=SIZE"));
}

#[test]
fn images_are_amended_and_measured_as_by_qemu_img() {
    let folder = Folder::new("image-amend");
    ok(&folder, &["create", "-q", "-f", "qcow2", "a.qcow2", "10M"]);
    ok(&folder, &["amend", "-f", "qcow2", "-o", "compat=0.10", "a.qcow2"]);
    assert!(ok(&folder, &["info", "a.qcow2"]).contains("compat: 0.10"));
    ok(&folder, &["amend", "-o", "compat=1.1,lazy_refcounts=on,size=12M", "a.qcow2"]);
    let info = ok(&folder, &["info", "a.qcow2"]);
    assert!(info.contains("lazy refcounts: true") && info.contains("(12582912 bytes)"), "{info}");
    assert!(refused(&folder, &["amend", "-o", "cluster_size=4k", "a.qcow2"]).contains("cluster_size"));
    ok(&folder, &["create", "-q", "-f", "raw", "a.raw", "10M"]);
    assert!(refused(&folder, &["amend", "-f", "raw", "-o", "size=1M", "a.raw"]).contains("amended"));
    assert!(refused(&folder, &["info", "--object", "secret,id=s,data=x", "a.raw"]).contains("secret"));
    for (args, second) in [
        (&["bench", "-c", "100", "-d", "4", "-f", "raw", "a.raw"][..], None),
        (
            &[
                "bench",
                "-c",
                "90",
                "-d",
                "4",
                "-w",
                "--flush-interval=10",
                "--pattern=7",
                "-s",
                "64k",
                "a.qcow2",
            ],
            Some("Sending flush every 10 requests"),
        ),
        (&["bench", "-c", "100", "-d", "8", "-i", "threads", "-t", "none", "-f", "raw", "a.raw"], None),
    ] {
        let ours = ok(&folder, args);
        let mut lines = ours.lines();
        assert!(lines.next().unwrap().starts_with(&format!("Sending {} ", args[2])), "{ours}");
        assert_eq!(second, second.and_then(|_| lines.next()), "{ours}");
        assert!(lines.next().unwrap().starts_with("Run completed in "), "{ours}");
        if qemu_img_there() {
            let theirs = qemu(&folder, args);
            let plan = |text: &str| text.lines().filter(|l| l.starts_with("Sending")).collect::<String>();
            assert_eq!(plan(&ours), plan(&theirs));
        }
    }
    assert!(refused(&folder, &["bench", "-n", "a.raw"]).contains("-t none"));
}

#[test]
fn images_are_named_as_nodes() {
    let folder = Folder::new("image-opts");
    data(&folder.path("a.raw"), 3_000_320);
    ok(&folder, &["convert", "-f", "raw", "-O", "qcow2", "a.raw", "a,b.qcow2"]);
    let node = "driver=qcow2,file.driver=file,file.filename=a,,b.qcow2";
    for command in ["info", "check", "map"] {
        let ours = ok(&folder, &[command, "--image-opts", node]);
        assert_eq!(ours, ok(&folder, &[command, "a,b.qcow2"]), "{command}");
        if qemu_img_there() && command != "map" {
            assert_eq!(ours, qemu(&folder, &[command, "--image-opts", node]), "{command}");
        }
    }
    ok(&folder, &["convert", "--image-opts", node, "-O", "raw", "b.raw"]);
    assert!(std::fs::read(folder.path("a.raw")).unwrap() == std::fs::read(folder.path("b.raw")).unwrap());
    // A file in which a guest could have written another format's header.
    let raw = "driver=raw,file.filename=a,,b.qcow2";
    assert!(ok(&folder, &["info", "--image-opts", raw]).contains("file format: raw"));
    for (options, why) in [
        ("driver=qcow3,file.filename=x", "qcow3"),
        ("driver=qcow2", "file"),
        ("driver=qcow2,file.filename=a,,b.qcow2,chache=x", "chache"),
    ] {
        assert!(refused(&folder, &["info", "--image-opts", options]).contains(why), "{options}");
    }
    let both = refused(&folder, &["info", "--image-opts", "-f", "qcow2", node]);
    assert!(both.contains("exclude each other"), "{both}");
}
