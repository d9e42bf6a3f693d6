//! With signatures that GnuPG and OpenSSH make.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use proptest::prelude::*;

use super::*;
use crate::error::Kind;

const DATA: &[u8] = b"what is signed\nis this\n";

/// What time it is for those who verify: 2030, before any key that is made without an end ends.
const NOW: i64 = 1_900_000_000;

/// A home for GnuPG, whose agent ends with it.
struct Gpg(tempfile::TempDir);

impl Drop for Gpg {
    fn drop(&mut self) {
        let _ = Command::new("gpgconf").arg("--homedir").arg(self.0.path()).args(["--kill", "all"]).status();
    }
}

fn run(command: &mut Command, input: &[u8]) -> String {
    let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = child.expect("gpg and ssh-keygen are installed");
    child.stdin.take().unwrap().write_all(input).unwrap();
    let said = child.wait_with_output().unwrap();
    assert!(said.status.success(), "{command:?}: {}", String::from_utf8_lossy(&said.stderr));
    String::from_utf8(said.stdout).unwrap()
}

impl Gpg {
    fn new() -> Self {
        use std::os::unix::fs::PermissionsExt as _;
        let only_mine = std::fs::Permissions::from_mode(0o700);
        Self(tempfile::Builder::new().permissions(only_mine).tempdir().unwrap())
    }

    fn run(&self, args: &[&str], input: &[u8]) -> String {
        let fixed = ["--batch", "--yes", "--quiet", "--pinentry-mode", "loopback", "--passphrase", ""];
        run(Command::new("gpg").arg("--homedir").arg(self.0.path()).args(fixed).args(args), input)
    }

    /// Makes a key and returns its fingerprint.
    fn key(&self, name: &str, algorithm: &str, options: &[&str]) -> String {
        self.run(&[options, &["--quick-generate-key", name, algorithm, "sign", "never"]].concat(), b"");
        self.fingerprint(name)
    }

    fn fingerprint(&self, name: &str) -> String {
        let listed = self.run(&["--with-colons", "--list-keys", name], b"");
        listed.lines().find_map(|line| line.strip_prefix("fpr:")).unwrap().trim_matches(':').to_owned()
    }

    fn public(&self, name: &str) -> String {
        self.run(&["--armor", "--export", name], b"")
    }

    fn sign(&self, name: &str, options: &[&str]) -> String {
        self.run(&[options, &["--armor", "--local-user", name, "--detach-sign"]].concat(), DATA)
    }
}

fn terms(keys: &str) -> Terms<'_> {
    Terms { keys, expired: Expired::Accepted, now_s: NOW }
}

fn refusal(signed: &[u8], signature: &str, terms: &Terms<'_>) -> (Kind, String) {
    let error = verify_object(signed, signature, terms).unwrap_err();
    (error.kind(), error.to_string())
}

fn verify_as_file(content: &[u8], signature: &str, keys: &str) -> Result<()> {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(content).unwrap();
    let verified = verify_file(&file, signature, &terms(keys));
    assert_eq!(file.metadata().unwrap().len(), content.len() as u64, "the file is as it was");
    verified
}

#[test]
fn signatures_of_accepted_algorithms_are_verified_and_those_of_others_refused() {
    let gpg = Gpg::new();
    for (algorithm, hashes) in [
        ("rsa2048", &["SHA256", "SHA384", "SHA512"][..]),
        ("ed25519", &["SHA256", "SHA512"]),
        ("nistp256", &["SHA256", "SHA384"]),
        ("nistp384", &["SHA384"]),
    ] {
        gpg.key(algorithm, algorithm, &[]);
        let keys = gpg.public(algorithm);
        for hash in hashes {
            for mode in ["--no-textmode", "--textmode"] {
                let signature = gpg.sign(algorithm, &["--digest-algo", hash, mode]);
                verify_object(DATA, &signature, &terms(&keys)).unwrap();
                verify_as_file(DATA, &signature, &keys).unwrap();
                let (kind, said) = refusal(b"something else", &signature, &terms(&keys));
                assert!(kind == Kind::Corrupt && said.contains(&gpg.fingerprint(algorithm)), "{said}");
                assert_eq!(verify_as_file(b"something else", &signature, &keys).unwrap_err().kind(), Kind::Corrupt);
            }
        }
        // GnuPG makes no shorter ones with curves.
        if algorithm == "rsa2048" {
            let (kind, said) = refusal(DATA, &gpg.sign(algorithm, &["--digest-algo", "SHA224"]), &terms(&keys));
            assert!(kind == Kind::Forbidden && said.contains("SHA-224"), "{said}");
        }
    }
    for (algorithm, kind, word) in [
        ("rsa1024", Kind::Forbidden, "the RSA key has 1024 bits, and 2048 is the least"),
        ("dsa2048", Kind::Unsupported, "RSA, ECDSA and EdDSA are accepted"),
        ("nistp521", Kind::Unsupported, "P-256 and P-384 are known here"),
    ] {
        gpg.key(algorithm, algorithm, &[]);
        let (found, said) =
            refusal(DATA, &gpg.sign(algorithm, &["--digest-algo", "SHA512"]), &terms(&gpg.public(algorithm)));
        assert!(found == kind && said.contains(word), "{algorithm}: {found:?} {said}");
    }
}

#[test]
fn only_the_keys_that_are_given_count() {
    let gpg = Gpg::new();
    let (first, second) = (gpg.key("first", "ed25519", &[]), gpg.key("second", "ed25519", &[]));
    let signature = gpg.sign("second", &[]);
    let (kind, said) = refusal(DATA, &signature, &terms(&gpg.public("first")));
    assert!(kind == Kind::Forbidden && said.contains(&first) && said.contains(&second[24..]), "{said}");
    // Blocks one after the other, or one block with several keys.
    verify_object(DATA, &signature, &terms(&format!("{}\n{}", gpg.public("first"), gpg.public("second")))).unwrap();
    let both = gpg.run(&["--armor", "--export"], b"");
    verify_object(DATA, &signature, &terms(&both)).unwrap();
    // A key that was bound to the first one signs for it.
    gpg.run(&["--quick-add-key", &first, "ed25519", "sign", "never"], b"");
    let by_subkey = gpg.sign("first", &[]);
    verify_object(DATA, &by_subkey, &terms(&gpg.public("first"))).unwrap();
    let private = gpg.run(&["--armor", "--export-secret-keys", "first"], b"");
    for (keys, word) in [("", "no armored OpenPGP key"), ("ssh-ed25519 AAAA", "SSH key"), (&private, "private key")] {
        let (kind, said) = refusal(DATA, &signature, &terms(keys));
        assert!(kind == Kind::InvalidArgument && said.contains(word), "{said}");
    }
    assert!(refusal(DATA, "not a signature", &terms(&both)).1.contains("neither OpenPGP's nor SSH's"));
    let x509 = "-----BEGIN SIGNED MESSAGE-----\nAAAA\n-----END SIGNED MESSAGE-----\n";
    assert_eq!(refusal(DATA, x509, &terms(&both)).0, Kind::Unsupported);
}

#[test]
fn keys_that_expired_or_were_revoked_count_as_the_terms_say() {
    let gpg = Gpg::new();
    let in_2020 = ["--faked-system-time", "20200101T000000!"];
    gpg.run(&[&in_2020[..], &["--quick-generate-key", "old", "ed25519", "sign", "1y"]].concat(), b"");
    let signature = gpg.sign("old", &["--faked-system-time", "20200601T000000!"]);
    let keys = gpg.public("old");
    verify_object(DATA, &signature, &terms(&keys)).unwrap();
    let strict = Terms { expired: Expired::Refused, ..terms(&keys) };
    let (kind, said) = refusal(DATA, &signature, &strict);
    assert!(kind == Kind::Forbidden && said.contains("expired at 2020-12-31T00:00:00Z"), "{said}");
    // Somebody whose clock stands before that, and before the signature.
    let early = Terms { now_s: 1_580_000_000, ..strict };
    assert!(refusal(DATA, &signature, &Terms { expired: Expired::Accepted, ..early }).1.contains("in the future"));
    let in_time = Terms { now_s: 1_600_000_000, ..strict };
    verify_object(DATA, &signature, &in_time).unwrap();
    // A holder who prolongs a key keeps what it signed.
    let fingerprint = gpg.fingerprint("old");
    gpg.run(&["--quick-set-expire", &fingerprint, "20y"], b"");
    let prolonged = gpg.public("old");
    verify_object(DATA, &signature, &Terms { keys: &prolonged, ..strict }).unwrap();
    let revocation = gpg.0.path().join(format!("openpgp-revocs.d/{fingerprint}.rev"));
    let revocation = std::fs::read_to_string(revocation).unwrap().replace("\n:-----", "\n-----");
    gpg.run(&["--import"], revocation.as_bytes());
    let (kind, said) = refusal(DATA, &signature, &terms(&gpg.public("old")));
    assert!(kind == Kind::Forbidden && said.contains("was revoked"), "{said}");
}

struct Ssh(tempfile::TempDir);

impl Ssh {
    fn keygen(args: &[&str], path: &Path) {
        run(Command::new("ssh-keygen").arg("-q").args(args).arg("-f").arg(path), b"");
    }

    fn key(&self, kind: &str, bits: &str) -> (std::path::PathBuf, String) {
        let path = self.0.path().join(format!("{kind}-{bits}"));
        Self::keygen(&["-t", kind, "-b", bits, "-N", "", "-C", "somebody"], &path);
        let public = std::fs::read_to_string(path.with_added_extension("pub")).unwrap();
        (path, public)
    }

    fn sign(&self, key: &Path, namespace: &str) -> String {
        let data = self.0.path().join("data");
        std::fs::write(&data, DATA).unwrap();
        let signature = self.0.path().join("data.sig");
        let _ = std::fs::remove_file(&signature);
        run(Command::new("ssh-keygen").args(["-q", "-Y", "sign", "-n", namespace, "-f"]).arg(key).arg(&data), b"");
        std::fs::read_to_string(signature).unwrap()
    }
}

#[test]
fn ssh_signatures_are_verified_with_the_key_for_git_alone() {
    let ssh = Ssh(tempfile::tempdir().unwrap());
    let (other, other_public) = ssh.key("ed25519", "256");
    for (kind, bits) in [("rsa", "2048"), ("ecdsa", "256"), ("ecdsa", "384")] {
        let (key, public) = ssh.key(kind, bits);
        let signature = ssh.sign(&key, "git");
        verify_object(DATA, &signature, &terms(&public)).unwrap();
        verify_object(DATA, &signature, &terms(&format!("# both\n{other_public}\n{public}"))).unwrap();
        assert_eq!(refusal(b"something else", &signature, &terms(&public)).0, Kind::Corrupt);
        let (kind, said) = refusal(DATA, &signature, &terms(&other_public));
        assert!(kind == Kind::Forbidden && said.contains("SHA256:"), "{said}");
    }
    let signature = ssh.sign(&other, "git");
    verify_object(DATA, &signature, &terms(&other_public)).unwrap();
    let (kind, said) = refusal(DATA, &ssh.sign(&other, "file"), &terms(&other_public));
    assert!(kind == Kind::Forbidden && said.contains("\"file\""), "{said}");
    let (large, public) = ssh.key("ecdsa", "521");
    assert_eq!(refusal(DATA, &ssh.sign(&large, "git"), &terms(&public)).0, Kind::Unsupported);
    let gpg = Gpg::new();
    gpg.key("somebody", "ed25519", &[]);
    assert!(refusal(DATA, &signature, &terms(&gpg.public("somebody"))).1.contains("no SSH keys"));
    for broken in ["ssh-ed25519", "ssh-ed25519 ????", "ssh-rsa AAAAC3NzaC1lZDI1NTE5"] {
        assert_eq!(refusal(DATA, &signature, &terms(broken)).0, Kind::InvalidArgument, "{broken}");
    }
}

/// A text of armor around bytes.
fn armored(label: &str, bytes: &[u8]) -> String {
    use base64::Engine as _;
    let encoded = base64::engine::general_purpose::STANDARD.encode(bytes);
    let blank = if label.starts_with("PGP") { "\n" } else { "" };
    format!("-----BEGIN {label}-----\n{blank}{encoded}\n-----END {label}-----\n")
}

proptest! {
    #[test]
    fn arbitrary_bytes_are_no_signature_and_no_key(bytes in proptest::collection::vec(any::<u8>(), 0..300), tag in 0..64_u8) {
        // As the body of a packet of each kind, and as they are.
        let length = u32::try_from(bytes.len()).unwrap().to_be_bytes();
        let packet = [&[0xc0 | tag, 0xff], &length[..], &bytes].concat();
        for data in [&bytes, &packet] {
            for label in ["PGP SIGNATURE", "SSH SIGNATURE"] {
                let keys = armored("PGP PUBLIC KEY BLOCK", data);
                prop_assert!(verify_object(DATA, &armored(label, data), &terms(&keys)).is_err());
            }
        }
    }
}

/// Each byte of a signature and of its key is changed in turn: nothing may panic, and what another key or another signature
/// says is not believed.
#[test]
fn signatures_and_keys_that_were_changed_are_refused_or_mean_the_same() {
    let gpg = Gpg::new();
    gpg.key("somebody", "ed25519", &[]);
    let (signature, keys) = (gpg.sign("somebody", &[]), gpg.public("somebody"));
    let (sealed, key) = (&armor::blocks(&signature).unwrap()[0].data, &armor::blocks(&keys).unwrap()[0].data);
    let mut good = 0;
    for at in 0..sealed.len() {
        let mut changed = sealed.clone();
        changed[at] ^= 1;
        good += usize::from(verify_object(DATA, &armored("PGP SIGNATURE", &changed), &terms(&keys)).is_ok());
    }
    // What is not part of what was signed: the issuer's id, which the fingerprint says, too, and the beginning of the digest.
    assert!(good <= 12, "{good}");
    for at in 0..key.len() {
        let mut changed = key.clone();
        changed[at] ^= 1;
        let _ = verify_object(DATA, &signature, &terms(&armored("PGP PUBLIC KEY BLOCK", &changed)));
    }
}
