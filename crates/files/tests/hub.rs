//! The hub client against a stand-in on loopback: what it downloads, where that lies, and how it behaves when the
//! server, the network, the disk or a second process does not. Nothing leaves this machine.

#[path = "hub/stand_in.rs"]
mod stand_in;

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use reverie_files::hub::{HubConfig, HubError, Notice, Patience, Token, fetch, parse_model_id};
use stand_in::{COMMIT, Place, Reply, Request, StandIn, git_sha1, sha256};

const WEIGHTS: &str = "model.safetensors";

/// Bytes that differ everywhere, so that a wrong offset shows.
fn content(len: usize, seed: u32) -> Vec<u8> {
    let mut state = seed;
    let mut step = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..len).map(|_| step()).collect()
}

fn weights() -> Vec<u8> {
    content(700_001, 1)
}

fn small_model() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("README.md", b"# n".to_vec()),
        ("config.json", br#"{"model_type":"x"}"#.to_vec()),
        ("consolidated.safetensors", weights()),
        (WEIGHTS, weights()),
        ("original/params.json", b"{}".to_vec()),
        ("pytorch_model.bin", weights()),
        ("tokenizer.json", content(5000, 2)),
        ("tokenizer_config.json", Vec::new()),
    ]
}

fn config(hub: &StandIn, cache: &Path) -> HubConfig {
    let patience = Patience {
        attempts: 3,
        first_wait: Duration::from_millis(1),
        connect: Duration::from_secs(5),
        stall: Duration::from_secs(5),
    };
    HubConfig { patience, ..HubConfig::new(&hub.endpoint, cache) }
}

fn get(id: &str, config: &HubConfig) -> (Result<PathBuf, HubError>, Vec<Notice>) {
    let mut notices = Vec::new();
    let result = fetch(&parse_model_id(id).unwrap(), config, &mut |progress| notices.extend(progress.notice));
    (result, notices)
}

fn repository(cache: &Path) -> PathBuf {
    cache.join("models--o--n")
}

fn incomplete(cache: &Path) -> PathBuf {
    repository(cache).join("blobs").join(format!("{}.incomplete", sha256(&weights())))
}

fn is_content(request: &Request, name: &str) -> bool {
    request.method == "GET" && request.path.ends_with(&format!("/{name}"))
}

/// Requests for the bytes of the weights, with the bytes sent.
fn weight_transfers(hub: &StandIn) -> Vec<(Request, usize)> {
    hub.take_log().into_iter().filter(|(r, _)| r.place == Place::Store && is_content(r, WEIGHTS)).collect()
}

#[test]
fn a_model_lies_in_the_ordinary_cache() {
    let (hub, dir) = (StandIn::start(&small_model()), tempfile::tempdir().unwrap());
    let mut seen: Vec<(String, u64, u64, usize, usize)> = Vec::new();
    let path = fetch(&parse_model_id("o/n").unwrap(), &config(&hub, dir.path()), &mut |p| {
        assert_eq!(p.notice, None);
        seen.push((p.file.to_owned(), p.done_bytes, p.total_bytes, p.files_done, p.files_total));
    })
    .unwrap();

    let root = repository(dir.path());
    assert_eq!(path, root.join("snapshots").join(COMMIT));
    assert_eq!(fs::read_to_string(root.join("refs/main")).unwrap(), COMMIT);
    let mut names: Vec<_> =
        fs::read_dir(&path).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert_eq!(names, ["config.json", WEIGHTS, "tokenizer.json", "tokenizer_config.json"]);
    for (name, bytes) in small_model().iter().filter(|(name, _)| names.iter().any(|n| n == name)) {
        assert_eq!(&fs::read(path.join(name)).unwrap(), bytes);
        let etag = if bytes.len() > 1024 { sha256(bytes) } else { git_sha1(bytes) };
        assert!(root.join("blobs").join(&etag).is_file());
        #[cfg(unix)]
        assert_eq!(fs::read_link(path.join(name)).unwrap(), Path::new("../../blobs").join(&etag));
        assert!(dir.path().join(".locks/models--o--n").join(format!("{etag}.lock")).is_file());
    }
    assert_eq!(fs::read_dir(root.join("blobs")).unwrap().count(), 4, "nothing unfinished is left");

    let total = (18 + 5000 + 700_001) as u64;
    assert!(seen.is_sorted_by_key(|step| (step.3, step.1)), "progress never goes back");
    assert!(seen.iter().all(|step| step.2 == total && step.4 == 4));
    assert!(seen.iter().any(|step| step.0 == WEIGHTS && (5018..total).contains(&step.1) && step.3 == 3));
    assert_eq!(seen.last().unwrap(), &(WEIGHTS.to_owned(), total, total, 4, 4));
}

#[test]
fn a_second_fetch_asks_for_the_commit_only() {
    let (hub, dir) = (StandIn::start(&small_model()), tempfile::tempdir().unwrap());
    let config = config(&hub, dir.path());
    let first = get("o/n", &config).0.unwrap();
    hub.take_log();
    assert_eq!(get("o/n", &config).0.unwrap(), first);
    let paths: Vec<String> = hub.take_log().into_iter().map(|(request, _)| request.path).collect();
    assert_eq!(paths, ["/api/models/o/n/revision/main"]);
}

#[test]
fn a_broken_transfer_is_taken_up_in_the_same_run() {
    let (hub, dir) = (StandIn::start(&small_model()), tempfile::tempdir().unwrap());
    let breaks = AtomicU32::new(0);
    // More breaks than tries, but each brings something.
    hub.twist(move |request, reply| match request.place == Place::Store && is_content(request, WEIGHTS) {
        true if breaks.fetch_add(1, Ordering::Relaxed) < 5 => Reply { cut: Some(100_000), ..reply },
        _ => reply,
    });
    let (path, notices) = get("o/n", &config(&hub, dir.path()));
    assert_eq!(fs::read(path.unwrap().join(WEIGHTS)).unwrap(), weights());
    assert_eq!(notices.iter().filter(|notice| matches!(notice, Notice::Retry { .. })).count(), 5);
    let transfers = weight_transfers(&hub);
    let offsets: Vec<_> = transfers.iter().map(|(request, _)| request.header("range").unwrap_or("none")).collect();
    let expected = ["none", "bytes=100000-", "bytes=200000-", "bytes=300000-", "bytes=400000-", "bytes=500000-"];
    assert_eq!(offsets, expected);
    assert_eq!(transfers.iter().map(|(_, sent)| sent).sum::<usize>(), 700_001, "no byte is sent twice");
}

#[test]
fn a_broken_transfer_is_taken_up_by_a_later_run() {
    let (hub, dir) = (StandIn::start(&small_model()), tempfile::tempdir().unwrap());
    let mut config = config(&hub, dir.path());
    config.patience.attempts = 1;
    hub.twist(|request, reply| match request.place {
        Place::Store if is_content(request, WEIGHTS) => Reply { cut: Some(300_000), ..reply },
        _ => reply,
    });
    let error = get("o/n", &config).0.unwrap_err();
    assert!(matches!(error, HubError::Unreachable { attempts: 1, .. }), "{error}");
    assert_eq!(fs::metadata(incomplete(dir.path())).unwrap().len(), 300_000);
    assert!(!repository(dir.path()).join("refs/main").exists(), "a commit that is not whole gets no name");
    weight_transfers(&hub);

    hub.twist(|_, reply| reply);
    let path = get("o/n", &config).0.unwrap();
    assert_eq!(fs::read(path.join(WEIGHTS)).unwrap(), weights());
    let transfers = weight_transfers(&hub);
    assert_eq!(transfers.len(), 1);
    assert_eq!((transfers[0].0.header("range"), transfers[0].1), (Some("bytes=300000-"), 400_001));
    assert!(!incomplete(dir.path()).exists());
}

#[test]
fn a_whole_partial_file_needs_no_transfer_and_a_spoilt_one_is_caught() {
    let (hub, dir) = (StandIn::start(&small_model()), tempfile::tempdir().unwrap());
    let config = config(&hub, dir.path());
    fs::create_dir_all(incomplete(dir.path()).parent().unwrap()).unwrap();
    fs::write(incomplete(dir.path()), weights()).unwrap();
    get("o/n", &config).0.unwrap();
    assert_eq!(weight_transfers(&hub).len(), 0);

    let dir = tempfile::tempdir().unwrap();
    let config = HubConfig { cache_dir: dir.path().to_owned(), ..config };
    fs::create_dir_all(incomplete(dir.path()).parent().unwrap()).unwrap();
    fs::write(incomplete(dir.path()), content(1000, 9)).unwrap();
    assert!(matches!(get("o/n", &config).0, Err(HubError::Checksum { .. })));
    assert!(!incomplete(dir.path()).exists());
    get("o/n", &config).0.unwrap();
}

#[test]
fn a_server_without_range_starts_over_and_says_so() {
    let (hub, dir) = (StandIn::start(&small_model()), tempfile::tempdir().unwrap());
    fs::create_dir_all(incomplete(dir.path()).parent().unwrap()).unwrap();
    fs::write(incomplete(dir.path()), content(1000, 9)).unwrap();
    hub.twist(|request, reply| match request.place {
        Place::Store => Reply { body: weights(), ..Reply::status(200) },
        Place::Hub => reply,
    });
    let mut model = config(&hub, dir.path());
    model.patience.attempts = 1;
    // The tokenizer is not the weights, so let it be there already.
    let tokenizer = content(5000, 2);
    fs::write(repository(dir.path()).join("blobs").join(sha256(&tokenizer)), &tokenizer).unwrap();
    let (path, notices) = get("o/n", &model);
    assert_eq!(fs::read(path.unwrap().join(WEIGHTS)).unwrap(), weights());
    assert!(matches!(&notices[..], [Notice::Restart { file, .. }] if file == WEIGHTS), "{notices:?}");
}

#[test]
fn a_server_that_always_breaks_and_never_resumes_comes_to_an_end() {
    for status in [200, 416] {
        let (hub, dir) = (StandIn::start(&small_model()), tempfile::tempdir().unwrap());
        hub.twist(move |request, reply| match request.place == Place::Store && is_content(request, WEIGHTS) {
            true if request.header("range").is_some() && status == 416 => Reply::status(416),
            true => Reply { body: weights(), cut: Some(300_000), ..Reply::status(200) },
            false => reply,
        });
        let error = get("o/n", &config(&hub, dir.path())).0.unwrap_err();
        assert!(matches!(error, HubError::Unreachable { attempts: 3, .. }), "{error}");
        assert!(weight_transfers(&hub).len() <= 6);
    }
}

#[test]
fn wrong_content_is_refused_and_deleted() {
    for name in [WEIGHTS, "config.json"] {
        let (hub, dir) = (StandIn::start(&small_model()), tempfile::tempdir().unwrap());
        let config = config(&hub, dir.path());
        hub.twist(move |request, mut reply| {
            if is_content(request, name) && !reply.body.is_empty() {
                let last = reply.body.len() - 1;
                reply.body[last] ^= 1;
            }
            reply
        });
        let error = get("o/n", &config).0.unwrap_err();
        assert!(matches!(&error, HubError::Checksum { file, .. } if file == name), "{error}");
        let blobs = fs::read_dir(repository(dir.path()).join("blobs")).unwrap();
        assert!(
            !blobs.map(|entry| entry.unwrap().path()).any(|path| path.extension().is_some()),
            "partial file is left"
        );
        assert!(!repository(dir.path()).join("snapshots").join(COMMIT).join(name).exists());
        hub.twist(|_, reply| reply);
        get("o/n", &config).0.unwrap();
    }
}

#[test]
fn sizes_must_agree() {
    for (sent, announced) in [(700_000, 700_000), (700_002, 700_002)] {
        let (hub, dir) = (StandIn::start(&small_model()), tempfile::tempdir().unwrap());
        hub.twist(move |request, reply| match is_content(request, WEIGHTS) && request.place == Place::Store {
            true => Reply { body: content(sent, 1), ..Reply::status(200) },
            false => reply,
        });
        let error = get("o/n", &config(&hub, dir.path())).0.unwrap_err();
        let is_size = |error: &HubError| matches!(error, HubError::Size { expected_bytes: 700_001, found_bytes, .. } if *found_bytes == announced);
        assert!(is_size(&error), "{error}");
        assert!(!incomplete(dir.path()).exists());
    }
}

#[test]
fn a_plain_sha1_as_mirrors_give_it_is_accepted() {
    let (hub, dir) = (StandIn::start(&small_model()), tempfile::tempdir().unwrap());
    // SHA-1 of the eighteen bytes of config.json, without git's header.
    let plain = ring::digest::digest(&ring::digest::SHA1_FOR_LEGACY_USE_ONLY, br#"{"model_type":"x"}"#);
    let plain: String = plain.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    hub.twist(move |request, mut reply| {
        if request.path.ends_with("/config.json") {
            reply.headers.retain(|(name, _)| *name != "ETag");
            reply = reply.with("ETag", format!("\"{plain}\""));
        }
        reply
    });
    get("o/n", &config(&hub, dir.path())).0.unwrap();
}

#[test]
fn the_token_stays_with_the_hub() {
    let (hub, dir) = (StandIn::start(&small_model()), tempfile::tempdir().unwrap());
    let config = HubConfig { token: Token::new("hf_secret"), ..config(&hub, dir.path()) };
    get("o/n", &config).0.unwrap();
    let log = hub.take_log();
    assert!(log.iter().any(|(request, _)| request.place == Place::Store));
    for (request, _) in log {
        let expected = (request.place == Place::Hub).then_some("Bearer hf_secret");
        assert_eq!(request.header("authorization"), expected, "{request:?}");
        assert_eq!(request.header("accept-encoding"), Some("identity"));
    }
}

#[test]
fn refusals_say_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let refused = |path: &'static str, reply: Reply, token: Option<Token>| {
        let hub = StandIn::start(&small_model());
        hub.twist(move |request, plain| if request.path.contains(path) { reply.clone() } else { plain });
        let error = get("o/n", &HubConfig { token, ..config(&hub, dir.path()) }).0.unwrap_err();
        let asked = hub.take_log().len();
        (error, asked)
    };
    let (error, asked) = refused("/api/", Reply::status(404), None);
    assert!(matches!(error, HubError::NotFound { .. }) && asked == 1);
    assert!(error.to_string().contains("o/n") && error.to_string().contains("http://127.0.0.1"), "{error}");
    let (error, _) = refused("/api/", Reply::status(401).with("X-Error-Code", "RepoNotFound"), None);
    assert!(matches!(error, HubError::NotFound { .. }) && error.to_string().contains("set HF_TOKEN"), "{error}");
    let (error, _) = refused("/api/", Reply::status(404).with("X-Error-Code", "RevisionNotFound"), None);
    assert!(error.to_string().contains("no revision `main`"), "{error}");
    let gated = Reply::status(403).with("X-Error-Code", "GatedRepo").with("X-Error-Message", "ask first");
    let (error, _) = refused("/resolve/", gated, Token::new("t"));
    assert!(matches!(error, HubError::Gated { .. }), "{error}");
    assert!(
        error.to_string().contains("ask first") && error.to_string().contains("account of your HF_TOKEN"),
        "{error}"
    );
    let (error, _) = refused("/api/", Reply::status(401), Token::new("bad"));
    assert!(matches!(error, HubError::Denied { status: 401, .. }), "{error}");
    let (error, _) = refused("/resolve/", Reply::status(418), None);
    assert!(matches!(error, HubError::BadAnswer { .. }), "{error}");
}

#[test]
fn passing_faults_are_tried_again_but_not_for_ever() {
    let (hub, dir) = (StandIn::start(&small_model()), tempfile::tempdir().unwrap());
    let count = AtomicU32::new(0);
    hub.twist(move |request, reply| {
        let n = count.fetch_add(1, Ordering::Relaxed);
        match request.path.contains("/api/models/") {
            true if n == 0 => Reply::status(503),
            true if n == 1 => Reply::status(429).with("Retry-After", "0"),
            _ => reply,
        }
    });
    let (path, notices) = get("o/n", &config(&hub, dir.path()));
    path.unwrap();
    assert!(matches!(&notices[..], [Notice::Retry { .. }, Notice::Retry { wait: Duration::ZERO, .. }]), "{notices:?}");

    let dir = tempfile::tempdir().unwrap();
    // The store refuses a signed address that has run out: that is no verdict on the model.
    hub.twist(|request, reply| if request.place == Place::Store { Reply::status(403) } else { reply });
    hub.take_log();
    let error = get("o/n", &config(&hub, dir.path())).0.unwrap_err();
    assert!(matches!(error, HubError::Unreachable { attempts: 3, .. }), "{error}");
    assert_eq!(hub.take_log().iter().filter(|(request, _)| request.place == Place::Store).count(), 3);
}

#[test]
fn hostile_names_reach_no_disk() {
    let dir = tempfile::tempdir().unwrap();
    let cache = dir.path().join("a/b/cache");
    for name in ["../../x", "/etc/x", "a/../../x.gguf", "a\\..\\x", "x//y", "nul\0"] {
        let mut files = small_model();
        files.push((name, weights()));
        let hub = StandIn::start(&files);
        let error = get("o/n", &config(&hub, &cache)).0.unwrap_err();
        assert!(matches!(&error, HubError::HostileName { name: found, .. } if found == name), "{error}");
        assert_eq!(hub.take_log().len(), 1, "no file is asked for");
    }
    let hub = StandIn::start(&small_model());
    hub.twist(|request, reply| match request.path.contains("/resolve/") {
        true => Reply::status(200).with("ETag", "\"../../../x\""),
        false => reply,
    });
    assert!(matches!(get("o/n", &config(&hub, &cache)).0, Err(HubError::BadAnswer { .. })));
    hub.twist(|_, _| Reply { body: br#"{"sha":"../../x","siblings":[]}"#.to_vec(), ..Reply::status(200) });
    assert!(matches!(get("o/n", &config(&hub, &cache)).0, Err(HubError::BadAnswer { .. })));
    hub.twist(|request, _| Reply::status(302).with("Location", request.path.clone()));
    let error = get("o/n", &config(&hub, &cache)).0.unwrap_err();
    assert!(error.to_string().contains("redirects"), "{error}");
    assert!(!cache.exists() && fs::read_dir(dir.path()).unwrap().count() == 0);
}

#[test]
fn two_fetches_at_once_share_the_work() {
    let (hub, dir) = (StandIn::start(&small_model()), tempfile::tempdir().unwrap());
    hub.twist(|request, reply| match request.place {
        Place::Store => Reply { pause: Duration::from_millis(300), ..reply },
        Place::Hub => reply,
    });
    let config = config(&hub, dir.path());
    let results: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..3).map(|_| scope.spawn(|| get("o/n", &config))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    for (path, _) in &results {
        assert_eq!(fs::read(path.as_ref().unwrap().join(WEIGHTS)).unwrap(), weights());
    }
    let waited = |notices: &Vec<Notice>| notices.iter().any(|notice| matches!(notice, Notice::OtherDownload { .. }));
    assert!(results.iter().any(|(_, notices)| waited(notices)));
    let transfers = weight_transfers(&hub);
    assert_eq!(transfers.iter().map(|(_, sent)| sent).sum::<usize>(), 700_001, "the weights are sent once");
}

#[test]
fn offline_uses_the_cache_and_asks_nobody() {
    let (hub, dir) = (StandIn::start(&small_model()), tempfile::tempdir().unwrap());
    let online = config(&hub, dir.path());
    let offline = HubConfig { offline: true, ..online.clone() };
    let error = get("o/n", &offline).0.unwrap_err();
    assert!(matches!(error, HubError::NotCached { .. }) && error.to_string().contains("HF_HUB_OFFLINE"), "{error}");
    let path = get("o/n", &online).0.unwrap();
    hub.take_log();
    assert_eq!(get("o/n", &offline).0.unwrap(), path);
    assert_eq!(get(&format!("o/n@{COMMIT}"), &offline).0.unwrap(), path);
    assert!(matches!(get("o/n@other", &offline).0, Err(HubError::NotCached { .. })));
    fs::remove_file(path.join(WEIGHTS)).unwrap();
    assert!(matches!(get("o/n", &offline).0, Err(HubError::NotCached { .. })));
    assert_eq!(hub.take_log().len(), 0);
}

#[test]
fn without_network_the_cache_serves_and_it_is_said() {
    let (hub, dir) = (StandIn::start(&small_model()), tempfile::tempdir().unwrap());
    let online = config(&hub, dir.path());
    let path = get("o/n", &online).0.unwrap();
    // A port that nobody listens on.
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let cut_off = HubConfig { endpoint: format!("http://{closed}"), ..online.clone() };
    let (found, notices) = get("o/n", &cut_off);
    assert_eq!(found.unwrap(), path);
    assert!(matches!(&notices[..], [Notice::CacheOnly { .. }]), "{notices:?}");
    assert!(notices[0].to_string().contains("copy in the cache"));
    assert!(matches!(get("o/other", &cut_off).0, Err(HubError::Unreachable { attempts: 3, .. })));
    // A hub that says no is not a network that fails.
    hub.twist(|_, _| Reply::status(404));
    assert!(matches!(get("o/n", &online).0, Err(HubError::NotFound { .. })));
}

#[test]
fn a_peer_that_speaks_no_tls_is_not_asked_again() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (endpoint, dir) = (format!("https://{}", listener.local_addr().unwrap()), tempfile::tempdir().unwrap());
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let hello = stream.read(&mut [0; 4096]).unwrap();
            assert!(hello > 0);
            stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").unwrap();
        }
    });
    let (result, notices) = get("o/n", &HubConfig::new(&endpoint, dir.path()));
    let error = result.unwrap_err();
    assert!(matches!(error, HubError::Unreachable { attempts: 1, .. }), "{error}");
    assert!(error.to_string().contains("SSL_CERT_FILE") && notices.is_empty(), "{error}");
}

#[test]
fn an_index_says_which_weights_and_a_revision_keeps_its_name() {
    let index = br#"{"weight_map":{"a":"model-00001-of-00002.safetensors","b":"model-00002-of-00002.safetensors"}}"#;
    let files = vec![
        ("config.json", b"{}".to_vec()),
        ("model-00001-of-00002.safetensors", content(2000, 3)),
        ("model-00002-of-00002.safetensors", content(3000, 4)),
        ("model.fp32.safetensors", content(4000, 5)),
        ("model.safetensors.index.json", index.to_vec()),
    ];
    let (hub, dir) = (StandIn::start(&files), tempfile::tempdir().unwrap());
    let config = config(&hub, dir.path());
    let path = get("o/n@refs/pr/1", &config).0.unwrap();
    assert_eq!(fs::read(path.join("model-00002-of-00002.safetensors")).unwrap(), content(3000, 4));
    assert!(!path.join("model.fp32.safetensors").exists());
    assert_eq!(fs::read_to_string(repository(dir.path()).join("refs/refs/pr/1")).unwrap(), COMMIT);
    assert_eq!(hub.take_log()[0].0.path, "/api/models/o/n/revision/refs%2Fpr%2F1");
    assert_eq!(get("o/n@refs/pr/1", &HubConfig { offline: true, ..config }).0.unwrap(), path);
}

#[test]
fn one_gguf_is_chosen_by_name() {
    let files =
        vec![("README.md", Vec::new()), ("sub/n-Q4_K_M.gguf", content(2000, 3)), ("n-Q8_0.gguf", content(3000, 4))];
    let (hub, dir) = (StandIn::start(&files), tempfile::tempdir().unwrap());
    let config = config(&hub, dir.path());
    let error = get("o/n", &config).0.unwrap_err().to_string();
    assert!(
        error.contains("n-Q8_0.gguf") && error.contains("sub/n-Q4_K_M.gguf") && error.contains("o/n:FILE"),
        "{error}"
    );
    let path = get("o/n:sub/n-Q4_K_M.gguf", &config).0.unwrap();
    assert_eq!(path, repository(dir.path()).join("snapshots").join(COMMIT).join("sub/n-Q4_K_M.gguf"));
    assert_eq!(fs::read(&path).unwrap(), content(2000, 3));
    assert_eq!(get("o/n:q4_k_m", &HubConfig { offline: true, ..config.clone() }).0.unwrap(), path);
    assert!(matches!(get("o/n:Q2_K", &config).0, Err(HubError::ChooseGguf { .. })));
}

#[test]
fn a_damaged_blob_is_replaced() {
    let (hub, dir) = (StandIn::start(&small_model()), tempfile::tempdir().unwrap());
    let blob = repository(dir.path()).join("blobs").join(sha256(&weights()));
    fs::create_dir_all(blob.parent().unwrap()).unwrap();
    fs::write(&blob, "short").unwrap();
    let (path, notices) = get("o/n", &config(&hub, dir.path()));
    assert_eq!(fs::read(path.unwrap().join(WEIGHTS)).unwrap(), weights());
    assert!(matches!(&notices[..], [Notice::Restart { .. }]), "{notices:?}");
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_called_so() {
    let (hub, dir) = (StandIn::start(&small_model()), tempfile::tempdir().unwrap());
    fs::create_dir_all(incomplete(dir.path()).parent().unwrap()).unwrap();
    std::os::unix::fs::symlink("/dev/full", incomplete(dir.path())).unwrap();
    let error = get("o/n", &config(&hub, dir.path())).0.unwrap_err();
    assert!(matches!(error, HubError::DiskFull { needed_bytes: 700_001, .. }), "{error}");
}
