//! `login` and `logout`.

use std::io::{BufRead as _, IsTerminal as _, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use rustix::termios::{LocalModes, OptionalActions, Termios};

use super::args::Context;
use super::print;
use crate::client::Query;
use crate::config::docker::{DockerConfig, Stored, server_key};
use crate::config::{AuthConfig, Credentials, Secret, domain_of};
use crate::error::{Error, Result, ResultExt as _};
use crate::types::AuthResponse;

/// The registry that is meant when none is named.
const HUB: &str = "docker.io";

/// Commands on registries.
#[derive(Debug, Subcommand)]
pub(super) enum Flat {
    /// Log in to a registry
    Login(LoginArgs),
    /// Forget the credentials for a registry
    Logout(LogoutArgs),
}

impl Flat {
    pub(super) async fn run(self, context: &Context) -> Result<ExitCode> {
        match self {
            Self::Login(args) => login(context, &args).await,
            Self::Logout(args) => logout(context, &args),
        }
    }
}

/// Arguments of `login`.
#[derive(Debug, Args)]
pub(super) struct LoginArgs {
    /// The user's name
    #[arg(short, long)]
    username: Option<String>,
    /// The password or token; better given with --password-stdin
    #[arg(short, long, conflicts_with = "password_stdin")]
    password: Option<String>,
    /// Read the password from standard input
    #[arg(long, requires = "username")]
    password_stdin: bool,
    /// The registry; Docker Hub unless given
    server: Option<String>,
}

async fn login(context: &Context, args: &LoginArgs) -> Result<ExitCode> {
    let domain = domain_of(args.server.as_deref().unwrap_or(HUB));
    let mut config = DockerConfig::load(&context.environment)?;
    let (username, password) = match (&args.username, given_password(args)?) {
        (None, None) => match reuse(context, &config, domain).await? {
            Some(code) => return Ok(code),
            None => ask(None)?,
        },
        (Some(username), Some(password)) => (username.clone(), password),
        (username, None) => ask(username.as_deref())?,
        (None, Some(password)) => (ask_username()?, password),
    };
    if username.is_empty() || password.is_empty() {
        return Err(Error::invalid("a user name and a password are required"));
    }
    let answer = check(context, domain, &Credentials::password(&username, &password)).await?;
    let credentials = match answer.identity_token.as_deref().unwrap_or_default() {
        "" => Credentials::Password { username, password: Secret::new(password) },
        token => Credentials::IdentityToken { username, token: Secret::new(token) },
    };
    if let Stored::File(path) = config.login(domain, &credentials)? {
        let path = path.display();
        anstream::eprintln!(
            "WARNING! Your credentials are stored unencrypted in '{path}'.\nConfigure a credential helper to remove this warning."
        );
    }
    print("Login Succeeded\n")
}

fn given_password(args: &LoginArgs) -> Result<Option<String>> {
    if args.password_stdin {
        let mut password = String::new();
        std::io::stdin().read_to_string(&mut password).context(|| "read the password")?;
        return Ok(Some(password.trim_end_matches(['\r', '\n']).to_owned()));
    }
    if args.password.is_some() {
        anstream::eprintln!("WARNING! Using --password via the CLI is insecure. Use --password-stdin.");
    }
    Ok(args.password.clone())
}

/// Tries the credentials that are stored already, so that `login` alone renews or confirms a login.
async fn reuse(context: &Context, config: &DockerConfig, domain: &str) -> Result<Option<ExitCode>> {
    let Some(credentials) = config.credentials(domain)? else { return Ok(None) };
    print("Authenticating with existing credentials...\n")?;
    match check(context, domain, &credentials).await {
        Ok(_) => print("Login Succeeded\n").map(Some),
        Err(error) => {
            anstream::eprintln!("Login did not succeed, error: {error}");
            Ok(None)
        }
    }
}

async fn check(context: &Context, domain: &str, credentials: &Credentials) -> Result<AuthResponse> {
    let auth = AuthConfig::for_request(server_key(domain), credentials);
    context.client.post(&Query::new().path(&["auth"]), &auth).await
}

fn ask(username: Option<&str>) -> Result<(String, String)> {
    if !std::io::stdin().is_terminal() {
        return Err(Error::invalid(
            "cannot perform an interactive login from a non TTY device: give --username and --password-stdin",
        ));
    }
    let username = match username {
        Some(username) => username.to_owned(),
        None => ask_username()?,
    };
    Ok((username, ask_password()?))
}

fn ask_username() -> Result<String> {
    print("Username: ")?;
    read_line()
}

fn ask_password() -> Result<String> {
    print("Password: ")?;
    let silence = Silence::begin()?;
    let password = read_line();
    drop(silence);
    print("\n")?;
    password
}

fn read_line() -> Result<String> {
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line)?;
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}

/// A terminal that does not show what is typed, until this is dropped.
struct Silence(Termios);

impl Silence {
    fn begin() -> Result<Self> {
        let stdin = std::io::stdin();
        let before = rustix::termios::tcgetattr(stdin.as_fd())?;
        let mut silent = before.clone();
        silent.local_modes.remove(LocalModes::ECHO);
        rustix::termios::tcsetattr(stdin.as_fd(), OptionalActions::Flush, &silent)?;
        Ok(Self(before))
    }
}

impl Drop for Silence {
    fn drop(&mut self) {
        // A terminal that has gone needs no echo.
        let _ = rustix::termios::tcsetattr(std::io::stdin().as_fd(), OptionalActions::Flush, &self.0);
        let _ = std::io::stdout().flush();
    }
}

/// Arguments of `logout`.
#[derive(Debug, Args)]
pub(super) struct LogoutArgs {
    /// The registry; Docker Hub unless given
    server: Option<String>,
}

fn logout(context: &Context, args: &LogoutArgs) -> Result<ExitCode> {
    let domain = domain_of(args.server.as_deref().unwrap_or(HUB));
    let mut config = DockerConfig::load(&context.environment)?;
    if config.logout(domain)? {
        print(&format!("Removing login credentials for {}\n", server_key(domain)))
    } else {
        print(&format!("Not logged in to {}\n", server_key(domain)))
    }
}
