//! Credentials for AWS, and for services that speak its protocols, where AWS's own tools find them: the environment, then a profile
//! of the shared files.
//!
//! Ways that need another service (roles, single sign-on, metadata of instances and containers) or another program are not here:
//! where one is configured, it is refused by name.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::{Environment, Secret};
use crate::error::{Error, Result, ResultExt as _};

/// Settings of a profile, and variables, that lead to credentials in ways which are not here.
const ELSEWHERE: &[(&str, &str)] = &[
    ("AWS_WEB_IDENTITY_TOKEN_FILE", "web_identity_token_file"),
    ("AWS_ROLE_ARN", "role_arn"),
    ("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "credential_source"),
    ("AWS_CONTAINER_CREDENTIALS_FULL_URI", "credential_process"),
    ("", "sso_session"),
    ("", "sso_start_url"),
];

/// The largest shared file that is read, in bytes.
const MAX_BYTES: u64 = 1 << 20;

/// Where credentials are; by default nowhere.
#[derive(Clone, Debug, Default)]
pub struct Aws {
    given: Option<AwsCredentials>,
    /// The variable that leads to credentials in a way which is not here.
    elsewhere: Option<&'static str>,
    region: Option<String>,
    profile: Option<String>,
    /// The shared files, the one that wins last.
    files: Vec<PathBuf>,
    /// What is wrong with a variable.
    malformed: Option<String>,
}

/// A pair of keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AwsCredentials {
    /// The public one.
    pub access_key: String,
    /// The secret one.
    pub secret_key: Secret,
    /// What belongs to keys that last a while only.
    pub session_token: Option<Secret>,
}

impl Aws {
    /// Takes what the environment says. No file is read yet, and a variable that is not UTF-8 is an error only for who needs it.
    #[must_use]
    pub fn of(environment: &Environment) -> Self {
        Self::said(environment).unwrap_or_else(|error| Self { malformed: Some(error.to_string()), ..Self::default() })
    }

    fn said(environment: &Environment) -> Result<Self> {
        let text = |names: &[&str]| Ok::<_, Error>(environment.text(names)?.map(str::to_owned));
        let access_key = text(&["AWS_ACCESS_KEY_ID", "AWS_ACCESS_KEY"])?;
        let secret_key = text(&["AWS_SECRET_ACCESS_KEY", "AWS_SECRET_KEY"])?;
        let session_token = text(&["AWS_SESSION_TOKEN"])?.map(Secret::new);
        let given = access_key.zip(secret_key).map(|(access_key, secret_key)| AwsCredentials {
            access_key,
            secret_key: Secret::new(secret_key),
            session_token,
        });
        let home = environment.path("HOME");
        let file = |name, usual: &str| environment.path(name).or_else(|| Some(home.as_ref()?.join(".aws").join(usual)));
        let files = [file("AWS_CONFIG_FILE", "config"), file("AWS_SHARED_CREDENTIALS_FILE", "credentials")];
        let mut variables = ELSEWHERE.iter().map(|(variable, _)| *variable).filter(|variable| !variable.is_empty());
        Ok(Self {
            given,
            elsewhere: variables.find(|variable| environment.path(variable).is_some()),
            region: text(&["AWS_REGION", "AWS_DEFAULT_REGION"])?,
            profile: text(&["AWS_PROFILE", "AWS_DEFAULT_PROFILE"])?,
            files: files.into_iter().flatten().collect(),
            malformed: None,
        })
    }

    fn check(&self) -> Result<()> {
        self.malformed.as_ref().map_or(Ok(()), |why| Err(Error::invalid(why.as_str())))
    }

    /// Returns the region of the environment, or else that of the profile. Blocking, but only small local files.
    ///
    /// # Errors
    /// `InvalidArgument` for a variable that is not UTF-8; when a file cannot be read.
    pub fn region(&self) -> Result<Option<String>> {
        self.check()?;
        match &self.region {
            Some(region) => Ok(Some(region.clone())),
            None => Ok(self.settings()?.and_then(|mut settings| settings.remove("region"))),
        }
    }

    /// Looks for credentials; `None` when there are none. Blocking, but only small local files.
    ///
    /// # Errors
    /// `NotFound` for a profile that is named and does not exist; `Unsupported` when credentials are to be had in a way that is not
    /// here; `InvalidArgument` for a variable that is not UTF-8; when a file cannot be read.
    pub fn credentials(&self) -> Result<Option<AwsCredentials>> {
        self.check()?;
        if let Some(given) = &self.given {
            return Ok(Some(given.clone()));
        }
        let refused = |what: &str| {
            Error::unsupported(format!(
                "AWS credentials by {what} are not supported: give AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and \
                 AWS_SESSION_TOKEN"
            ))
        };
        if let Some(variable) = self.elsewhere {
            return Err(refused(variable));
        }
        let Some(mut settings) = self.settings()? else { return Ok(None) };
        let pair = settings.remove("aws_access_key_id").zip(settings.remove("aws_secret_access_key"));
        // With a role, keys are those that ask for it, and not the ones to use.
        if let Some((_, key)) = ELSEWHERE.iter().find(|(_, key)| settings.contains_key(*key)) {
            let profile = self.profile();
            return Err(refused(&format!("{key} (of the profile {profile})")));
        }
        let session_token = settings.remove("aws_session_token").map(Secret::new);
        Ok(pair.map(|(access_key, secret_key)| AwsCredentials {
            access_key,
            secret_key: Secret::new(secret_key),
            session_token,
        }))
    }

    fn profile(&self) -> &str {
        self.profile.as_deref().unwrap_or("default")
    }

    /// Returns the settings of the profile; `None` when no file has it.
    fn settings(&self) -> Result<Option<BTreeMap<String, String>>> {
        let mut found: Option<BTreeMap<String, String>> = None;
        for path in &self.files {
            if let Some(section) = read(path)?.and_then(|text| section(&text, self.profile())) {
                found.get_or_insert_default().extend(section);
            }
        }
        match (&found, &self.profile) {
            (None, Some(profile)) => {
                Err(Error::not_found(format!("there is no profile {profile} in AWS's shared files")))
            }
            _ => Ok(found),
        }
    }
}

/// Reads a shared file; `None` when it is not there.
fn read(path: &Path) -> Result<Option<String>> {
    let context = || format!("read {}", path.display());
    match std::fs::metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Ok(metadata) if metadata.len() > MAX_BYTES => {
            return Err(Error::invalid(format!("{} is larger than {} MiB", path.display(), MAX_BYTES >> 20)));
        }
        metadata => metadata.context(context)?,
    };
    std::fs::read_to_string(path).context(context).map(Some)
}

/// Returns the settings of a profile's sections; `None` when there is no such section. Those of `config` are called `profile NAME`.
fn section(text: &str, profile: &str) -> Option<BTreeMap<String, String>> {
    let (mut found, mut within): (Option<BTreeMap<String, String>>, bool) = (None, false);
    for line in text.lines() {
        // What is indented belongs to the setting before.
        if line.starts_with([' ', '\t', '#', ';']) {
            continue;
        }
        let line = line.trim_end();
        if let Some(name) = line.strip_prefix('[').and_then(|line| line.split(']').next()) {
            let name = name.trim();
            let name = name.strip_prefix("profile").filter(|rest| rest.starts_with([' ', '\t'])).unwrap_or(name).trim();
            within = name.trim_matches(['"', '\'']) == profile;
            if within {
                found.get_or_insert_default();
            }
        } else if let (true, Some(found), Some((key, value))) = (within, &mut found, line.split_once('=')) {
            let value = value.split(" #").next().unwrap_or_default().split(" ;").next().unwrap_or_default();
            found.insert(key.trim().to_ascii_lowercase(), value.trim().to_owned());
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::User;

    const CONFIG: &str = "[default]\nregion = eu-north-1 # far\n[profile ci]\nregion=us-east-2\ns3 =\n  addressing_style = path\n\
                          [profile role]\nrole_arn = arn:aws:iam::1:role/x\nsource_profile = ci\n[profile sso]\nsso_session = a\n";
    const CREDENTIALS: &str = "# kept by hand\n[default]\naws_access_key_id = A\naws_secret_access_key = S=/+\n\
                               [ci]\naws_access_key_id = CI\naws_secret_access_key = T\naws_session_token = U\n";

    fn aws(variables: &[(&str, &str)]) -> (tempfile::TempDir, Aws) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join(".aws")).unwrap();
        std::fs::write(dir.path().join(".aws/config"), CONFIG).unwrap();
        std::fs::write(dir.path().join(".aws/credentials"), CREDENTIALS).unwrap();
        let home = dir.path().display().to_string();
        let all: Vec<_> = [("HOME", home.as_str())].iter().chain(variables).copied().collect();
        let aws = Aws::of(&Environment::of(User::Root, &all));
        (dir, aws)
    }

    fn keys(access_key: &str, secret_key: &str, token: Option<&str>) -> Option<AwsCredentials> {
        let secret_key = Secret::new(secret_key);
        Some(AwsCredentials { access_key: access_key.to_owned(), secret_key, session_token: token.map(Secret::new) })
    }

    #[test]
    fn the_environment_wins_over_the_profile_it_names_and_that_over_the_default() {
        let (_dir, files) = aws(&[]);
        assert_eq!(files.credentials().unwrap(), keys("A", "S=/+", None));
        assert_eq!(files.region().unwrap().as_deref(), Some("eu-north-1"));
        let (_dir, profile) = aws(&[("AWS_PROFILE", "ci")]);
        assert_eq!(profile.credentials().unwrap(), keys("CI", "T", Some("U")));
        assert_eq!(profile.region().unwrap().as_deref(), Some("us-east-2"));
        let variables = [("AWS_ACCESS_KEY_ID", "E"), ("AWS_SECRET_ACCESS_KEY", "F"), ("AWS_REGION", "r")];
        let (_dir, given) = aws(&[&variables[..], &[("AWS_PROFILE", "ci")]].concat());
        assert_eq!(
            (given.credentials().unwrap(), given.region().unwrap().as_deref()),
            (keys("E", "F", None), Some("r"))
        );
        let (dir, _) = aws(&[]);
        let own = dir.path().join("own").display().to_string();
        std::fs::write(&own, "[default]\naws_access_key_id=O\naws_secret_access_key=P\n").unwrap();
        let (_dir, named) = aws(&[("AWS_SHARED_CREDENTIALS_FILE", &own)]);
        assert_eq!(named.credentials().unwrap(), keys("O", "P", None));
    }

    #[test]
    fn where_nothing_is_said_there_is_nothing_and_other_ways_are_refused_by_name() {
        let nobody = Aws::of(&Environment::of(User::Root, &[("HOME", "/does/not/exist")]));
        assert_eq!((nobody.credentials().unwrap(), nobody.region().unwrap()), (None, None));
        for (variables, words) in [
            (&[("AWS_PROFILE", "missing")][..], "no profile missing"),
            (&[("AWS_PROFILE", "role")], "role_arn (of the profile role)"),
            (&[("AWS_PROFILE", "sso")], "sso_session"),
            (&[("AWS_WEB_IDENTITY_TOKEN_FILE", "/token"), ("AWS_ROLE_ARN", "x")], "AWS_WEB_IDENTITY_TOKEN_FILE"),
            (&[("AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://x")], "AWS_CONTAINER_CREDENTIALS_FULL_URI"),
        ] {
            let (_dir, aws) = aws(variables);
            let error = aws.credentials().unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }
}
