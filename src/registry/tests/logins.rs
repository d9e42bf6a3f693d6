//! Basic and token authentication, and what is said when it fails.

use std::collections::HashMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::fake::{Fake, Seen, Trick};
use super::*;

/// A token service and the gate of a registry in one: lets in who has a token for the repository.
pub(super) struct Gate {
    /// Requests a token serves before it is refused, as if it had expired.
    life: usize,
    /// Who is not told here may only pull `public`.
    user: (&'static str, &'static str),
    tokens: Mutex<HashMap<String, (String, usize)>>,
}

const REFRESH: &str = "refresh-secret";

impl Gate {
    pub(super) fn new(life: usize) -> Self {
        Self { life, user: ("user", "hunter2"), tokens: Mutex::default() }
    }

    async fn open(life: usize) -> Fake {
        let gate = Self::new(life);
        Fake::with(move |seen| gate.play(seen)).await
    }

    pub(super) fn play(&self, seen: &Seen) -> Trick {
        if seen.path.starts_with("/token") {
            return self.issue(seen);
        }
        let token = seen.header("authorization").and_then(|header| header.strip_prefix("Bearer "));
        let mut tokens = self.tokens.lock().unwrap();
        let wanted = required(seen);
        let allows = |scopes: &str| wanted.is_empty() || scopes.split(' ').any(|scope| covers(scope, &wanted));
        if let Some((_, left)) =
            token.and_then(|token| tokens.get_mut(token)).filter(|token| token.1 > 0 && allows(&token.0))
        {
            *left -= 1;
            return Trick::None;
        }
        let (host, scope) = (seen.header("host").unwrap(), wanted);
        let challenge = format!(r#"Bearer realm="http://{host}/token",service="gate",scope="{scope}""#);
        let body = r#"{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}"#;
        Trick::Answer(401, vec![("www-authenticate", challenge)], body.into())
    }

    fn issue(&self, seen: &Seen) -> Trick {
        let (user, password) = self.user;
        let form = String::from_utf8(seen.body.to_vec()).unwrap();
        let basic = format!("Basic {}", STANDARD.encode(format!("{user}:{password}")));
        let known = match seen.header("authorization") {
            Some(header) if header == basic => true,
            Some(_) => return Trick::Answer(401, Vec::new(), r#"{"details":"incorrect username or password"}"#.into()),
            None => form.contains(&format!("refresh_token={REFRESH}")),
        };
        let url = reqwest::Url::parse(&format!("http://x{}", seen.path)).unwrap();
        let form = reqwest::Url::parse(&format!("form:?{form}")).unwrap();
        let pairs = url.query_pairs().chain(form.query_pairs());
        let scopes = pairs
            .filter(|(key, _)| key == "scope")
            .flat_map(|(_, value)| value.split(' ').map(str::to_owned).collect::<Vec<_>>());
        let granted: Vec<String> = scopes.filter(|scope| known || scope == "repository:public:pull").collect();
        let mut tokens = self.tokens.lock().unwrap();
        let token = format!("token-{}", tokens.len());
        tokens.insert(token.clone(), (granted.join(" "), self.life));
        let refresh = if seen.query("offline_token").is_some() { REFRESH } else { "" };
        let body = format!(r#"{{"token":"{token}","expires_in":60,"refresh_token":"{refresh}"}}"#);
        Trick::Answer(200, Vec::new(), body.into())
    }
}

/// The scope a request needs.
fn required(seen: &Seen) -> String {
    let path = seen.path.strip_prefix("/v2/").unwrap();
    let end = ["/blobs/", "/manifests/", "/tags/"].iter().find_map(|part| path.find(part));
    let actions = if matches!(seen.method.as_str(), "GET" | "HEAD") { "pull" } else { "pull,push" };
    end.map_or_else(String::new, |end| format!("repository:{}:{actions}", &path[..end]))
}

fn covers(granted: &str, wanted: &str) -> bool {
    granted == wanted || wanted.strip_suffix("pull").is_some_and(|start| granted == format!("{start}pull,push"))
}

fn token_requests(server: &Fake) -> usize {
    server.count(|seen| seen.path.starts_with("/token"))
}

async fn pull(client: &Client, server: &Fake, name: &str) -> Result<Resolved> {
    client.resolve(&server.image(name)).await
}

#[tokio::test]
async fn anybody_gets_a_token_for_a_public_image() {
    let server = Gate::open(99).await;
    server.add_manifest("latest", media_type::OCI_MANIFEST, MANIFEST);
    pull(&plain(), &server, "public").await.unwrap();
    let seen = server.content().seen.clone();
    assert_eq!(seen[1].path, "/token?service=gate&scope=repository%3Apublic%3Apull&client_id=kiln");
    assert_eq!(seen[2].header("authorization"), Some("Bearer token-0"));
}

#[tokio::test]
async fn parallel_downloads_share_one_token() {
    let server = Gate::open(99).await;
    let client = as_user(&plain(), server.host(), "user", "hunter2");
    let image = server.image("team/private");
    let downloads = (0..20).map(|seed| {
        let blob = noise(10_000, seed);
        server.add_blob(&blob);
        let (client, image, descriptor) = (client.clone(), image.clone(), layer(&blob));
        async move { client.blob(&image, &descriptor, Memory::new(&descriptor), &Progress::new()).await.map(drop) }
    });
    futures_util::future::try_join_all(downloads).await.unwrap();
    assert_eq!(token_requests(&server), 1);
    let asked = server.content().seen.iter().find(|seen| seen.path.starts_with("/token")).unwrap().clone();
    assert_eq!(asked.query("account").as_deref(), Some("user"));
}

#[tokio::test]
async fn a_token_that_expired_is_replaced() {
    let server = Gate::open(3).await;
    server.add_manifest("latest", media_type::OCI_MANIFEST, MANIFEST);
    let client = as_user(&plain(), server.host(), "user", "hunter2");
    for _ in 0..10 {
        pull(&client, &server, "a").await.unwrap();
    }
    assert_eq!(token_requests(&server), 4);
    assert_eq!(server.content().connections, 1, "refusals do not cost a connection");
}

#[tokio::test]
async fn a_token_is_renewed_before_it_expires() {
    let server = Gate::open(99).await;
    server.add_manifest("latest", media_type::OCI_MANIFEST, MANIFEST);
    let client = plain();
    pull(&client, &server, "public").await.unwrap();
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(45)).await;
    tokio::time::resume();
    pull(&client, &server, "public").await.unwrap();
    assert_eq!(token_requests(&server), 1);
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(10)).await;
    tokio::time::resume();
    pull(&client, &server, "public").await.unwrap();
    assert_eq!(token_requests(&server), 2);
    assert_eq!(server.count(|seen| seen.gets("/manifests/") && seen.header("authorization").is_none()), 1);
}

#[tokio::test]
async fn an_identity_token_is_exchanged_by_post() {
    let server = Gate::open(99).await;
    server.add_manifest("latest", media_type::OCI_MANIFEST, MANIFEST);
    let credentials = Credentials::from_pair("<token>", REFRESH).unwrap();
    let client = plain().session(Provider::one(server.host(), credentials), Notes::none());
    pull(&client, &server, "a").await.unwrap();
    let posted = server.content().seen[1].clone();
    assert_eq!((posted.method.as_str(), posted.path.as_str()), ("POST", "/token"));
    assert_eq!(
        posted.body,
        "grant_type=refresh_token&service=gate&client_id=kiln&refresh_token=refresh-secret&scope=repository%3Aa%3Apull"
    );
}

#[tokio::test]
async fn a_registry_token_is_sent_as_it_is() {
    let server = Fake::with(|seen| match seen.header("authorization") {
        Some("Bearer my-token") => Trick::None,
        _ => Trick::Answer(401, vec![("www-authenticate", "Bearer realm=\"http://x/\"".to_owned())], Bytes::new()),
    })
    .await;
    server.add_manifest("latest", media_type::OCI_MANIFEST, MANIFEST);
    let credentials = Credentials::RegistryToken(Secret::new("my-token"));
    let client = plain().session(Provider::one(server.host(), credentials), Notes::none());
    pull(&client, &server, "a").await.unwrap();
    assert_eq!(server.content().seen.len(), 2);
}

#[tokio::test]
async fn a_password_is_asked_for_once() {
    let expected = format!("Basic {}", STANDARD.encode("user:hunter2"));
    let server = Fake::with(move |seen| match seen.header("authorization") {
        Some(header) if header == expected => Trick::None,
        _ => Trick::Answer(401, vec![("www-authenticate", "Basic realm=\"r\"".to_owned())], Bytes::new()),
    })
    .await;
    server.add_manifest("latest", media_type::OCI_MANIFEST, MANIFEST);
    let asked = Arc::new(Mutex::new(Vec::new()));
    let (kept, host) = (Arc::clone(&asked), server.host().to_owned());
    let provider = Provider::of(move |domain| {
        kept.lock().unwrap().push(domain.clone());
        let found = (domain == host).then(|| Credentials::password("user", "hunter2"));
        async { Ok(found) }
    });
    let client = plain().session(provider, Notes::none());
    for _ in 0..3 {
        pull(&client, &server, "a").await.unwrap();
    }
    assert_eq!(*asked.lock().unwrap(), [server.host()]);
    assert_eq!(server.content().seen.len(), 4, "only the first request goes without the password");

    let wrong = as_user(&plain(), server.host(), "user", "wrong-secret");
    let error = pull(&wrong, &server, "a").await.unwrap_err().to_string();
    assert!(error.contains("user user may not read it") && !error.contains("secret"), "{error}");
}

#[tokio::test]
async fn an_image_nobody_may_see_says_how_to_log_in() {
    let server = Gate::open(99).await;
    let error = pull(&plain(), &server, "private").await.unwrap_err();
    assert_eq!(error.kind(), Kind::NotFound);
    let expected = format!(
        "pull access denied for {0}/private, repository does not exist or may require `kiln login {0}`: authentication \
         required",
        server.host()
    );
    assert_eq!(error.to_string(), expected);
}

#[tokio::test]
async fn a_wrong_password_is_named_with_its_user_and_not_shown() {
    let server = Gate::open(99).await;
    let client = as_user(&plain(), server.host(), "user", "wrong-secret");
    let error = pull(&client, &server, "private").await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unauthorized);
    let expected = format!(
        "{0} refused user user: incorrect username or password (log in again with `kiln login {0}`)",
        server.host()
    );
    assert_eq!(error.to_string(), expected);
    assert!(!format!("{client:?}").contains("wrong-secret"));
}

#[tokio::test]
async fn a_push_without_a_login_says_so() {
    let server = Gate::open(99).await;
    let push = |client: Client| {
        let image = server.image("public");
        async move { client.push_manifest(&image, media_type::OCI_MANIFEST, MANIFEST.into()).await.unwrap_err() }
    };
    let error = push(plain()).await;
    assert_eq!(error.kind(), Kind::Unauthorized);
    assert!(error.to_string().contains("log in first with `kiln login"), "{error}");

    let denying = Fake::with(|seen| match seen.header("authorization") {
        None => Trick::Answer(401, vec![("www-authenticate", "Basic".to_owned())], Bytes::new()),
        Some(_) => Trick::error(403, "DENIED"),
    })
    .await;
    let client = as_user(&plain(), denying.host(), "user", "hunter2");
    let error = client.push_manifest(&denying.image("a"), media_type::OCI_MANIFEST, MANIFEST.into()).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Forbidden);
    assert!(error.to_string().contains("user user may not write to it"), "{error}");
}

#[tokio::test]
async fn credentials_that_cannot_be_read_matter_only_when_they_are_needed() {
    let server = Gate::open(99).await;
    server.add_manifest("latest", media_type::OCI_MANIFEST, MANIFEST);
    let broken = Provider::of(|_| async { Err(Error::internal("the keychain is locked")) });
    let client = plain().session(broken, Notes::none());
    pull(&client, &server, "public").await.unwrap();
    let error = pull(&client, &server, "private").await.unwrap_err().to_string();
    assert!(error.ends_with("(stored credentials could not be read: the keychain is locked)"), "{error}");
}

#[tokio::test]
async fn sessions_do_not_share_tokens() {
    let server = Gate::open(99).await;
    server.add_manifest("latest", media_type::OCI_MANIFEST, MANIFEST);
    let client = plain();
    pull(&as_user(&client, server.host(), "user", "hunter2"), &server, "private").await.unwrap();
    let error = pull(&client, &server, "private").await.unwrap_err();
    assert!(error.to_string().contains("pull access denied"), "{error}");
}

#[tokio::test]
async fn a_broken_token_service_is_named() {
    let server = Fake::with(|seen| {
        if seen.path.starts_with("/token") {
            return Trick::Answer(200, Vec::new(), "<html>hunter2</html>".into());
        }
        let realm = format!("Bearer realm=\"http://{}/token\"", seen.header("host").unwrap());
        Trick::Answer(401, vec![("www-authenticate", realm)], Bytes::new())
    })
    .await;
    let error = pull(&plain(), &server, "a").await.unwrap_err();
    let text = error.to_string();
    assert!(text.contains(&format!("the token service {} sent", server.host())) && !text.contains("hunter2"), "{text}");
    assert_eq!(error.kind(), Kind::Unavailable);
}

#[tokio::test]
async fn login_checks_the_credentials_and_brings_a_refresh_token() {
    let server = Gate::open(99).await;
    let address = format!("http://{}/v2/", server.host());
    let done = plain().check_login(&address, &Credentials::password("user", "hunter2")).await.unwrap();
    assert_eq!(done.identity_token, Some(Secret::new(REFRESH)));

    let error = plain().check_login(server.host(), &Credentials::password("user", "nope-secret")).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unauthorized);
    let expected = format!("{} refused user user: incorrect username or password", server.host());
    assert_eq!(error.to_string(), expected);
}

#[tokio::test]
async fn login_works_with_registries_that_take_a_password_or_nothing() {
    let expected = format!("Basic {}", STANDARD.encode("user:hunter2"));
    let server = Fake::with(move |seen| match seen.header("authorization") {
        Some(header) if header == expected => Trick::None,
        _ => Trick::Answer(401, vec![("www-authenticate", "Basic".to_owned())], Bytes::new()),
    })
    .await;
    let login = |password: &str| {
        let (client, host, credentials) = (plain(), server.host().to_owned(), Credentials::password("user", password));
        async move { client.check_login(&host, &credentials).await }
    };
    assert_eq!(login("hunter2").await.unwrap(), LoggedIn::default());
    assert_eq!(login("wrong").await.unwrap_err().kind(), Kind::Unauthorized);

    let open = Fake::start().await;
    plain().check_login(open.host(), &Credentials::password("any", "body")).await.unwrap();

    let other = Fake::with(|_| Trick::status(404)).await;
    let error = plain().check_login(other.host(), &Credentials::password("a", "b")).await.unwrap_err().to_string();
    assert!(error.contains("is it a registry?"), "{error}");
}
