//! What a context is built from: the material that the configuration holds itself, read once, and the slots of
//! secrets that come from elsewhere.

use std::sync::Arc;

use proxy_config::model::tls::{CommonTls, SecretRef, SessionTickets, ValidationContext, ValidationSource};

use crate::secret::material::{self, CertificateMaterial, Loaded, Material, ValidationMaterial};
use crate::secret::{Slot, Subscriber};
use crate::transport::{BuildError, Env};

pub(super) struct Inputs {
    certificates: Vec<Input<CertificateMaterial>>,
    validation: Validation,
    tickets: Tickets,
}

enum Input<T> {
    Here(T),
    Secret(Arc<Slot>),
}

enum Validation {
    None,
    Here(ValidationMaterial),
    Secret(Arc<Slot>),
    Combined { default: ValidationMaterial, slot: Arc<Slot> },
}

enum Tickets {
    Own,
    Disabled,
    Keys(Input<Vec<Material>>),
}

/// All of it, at one moment.
pub(super) struct Resolved {
    pub(super) certificates: Vec<Named>,
    pub(super) validation: Option<ValidationMaterial>,
    /// The secret's.
    pub(super) validation_name: Option<Arc<str>>,
    pub(super) tickets: TicketMaterial,
}

/// A certificate, by its secret's name where it is one.
pub(super) struct Named {
    pub(super) name: Option<Arc<str>>,
    pub(super) material: CertificateMaterial,
}

pub(super) enum TicketMaterial {
    Own,
    Disabled,
    Keys(Vec<Material>),
}

impl Inputs {
    pub(super) fn new(common: &CommonTls, tickets: &SessionTickets, env: &Env) -> Result<Self, BuildError> {
        let failed = |e: material::LoadError| BuildError(e.to_string());
        let slot = |of: &SecretRef| env.secrets.slot(of);
        let here = common.certificates.iter().map(|one| material::certificate(one).map(Input::Here));
        let mut certificates = here.collect::<Result<Vec<_>, _>>().map_err(failed)?;
        certificates.extend(common.certificate_secrets.iter().map(|of| Input::Secret(slot(of))));
        let read = |context: &Arc<ValidationContext>| material::validation(context).map_err(failed);
        let validation = match &common.validation {
            ValidationSource::None => Validation::None,
            ValidationSource::Context(context) => Validation::Here(read(context)?),
            ValidationSource::Secret(of) => Validation::Secret(slot(of)),
            ValidationSource::Combined { default, secret } => {
                Validation::Combined { default: read(default)?, slot: slot(secret) }
            }
        };
        let tickets = match tickets {
            SessionTickets::Own => Tickets::Own,
            SessionTickets::Disabled => Tickets::Disabled,
            SessionTickets::Keys(sources) => {
                Tickets::Keys(Input::Here(material::ticket_keys(sources).map_err(failed)?))
            }
            SessionTickets::Secret(of) => Tickets::Keys(Input::Secret(slot(of))),
        };
        Ok(Self { certificates, validation, tickets })
    }

    /// `None` while a secret is missing.
    pub(super) fn resolve(&self) -> Result<Option<Resolved>, String> {
        let mut certificates = Vec::new();
        for input in &self.certificates {
            let Some(material) = input.resolve(as_certificate)? else { return Ok(None) };
            let name = input.slot().map(|slot| slot.name.clone());
            certificates.push(Named { name, material });
        }
        let validation = match &self.validation {
            Validation::None => None,
            Validation::Here(material) => Some(material.clone()),
            Validation::Secret(slot) => match content(slot, as_validation)? {
                Some(material) => Some(material),
                None => return Ok(None),
            },
            Validation::Combined { default, slot } => match content(slot, as_validation)? {
                Some(material) => Some(combined(default, material)),
                None => return Ok(None),
            },
        };
        let tickets = match &self.tickets {
            Tickets::Own => TicketMaterial::Own,
            Tickets::Disabled => TicketMaterial::Disabled,
            Tickets::Keys(input) => match input.resolve(as_ticket_keys)? {
                Some(keys) => TicketMaterial::Keys(keys),
                None => return Ok(None),
            },
        };
        let validation_name = self.validation.slot().map(|slot| slot.name.clone());
        Ok(Some(Resolved { certificates, validation, validation_name, tickets }))
    }

    pub(super) fn slots(&self) -> impl Iterator<Item = &Arc<Slot>> {
        let certificates = self.certificates.iter().filter_map(|input| input.slot());
        let validation = self.validation.slot();
        let tickets = match &self.tickets {
            Tickets::Keys(input) => input.slot(),
            Tickets::Own | Tickets::Disabled => None,
        };
        certificates.chain(validation).chain(tickets)
    }

    pub(super) fn subscribe(&self, subscriber: &Arc<dyn Subscriber>) {
        for slot in self.slots() {
            slot.subscribe(subscriber);
        }
    }
}

impl Validation {
    fn slot(&self) -> Option<&Arc<Slot>> {
        match self {
            Self::Secret(slot) | Self::Combined { slot, .. } => Some(slot),
            Self::None | Self::Here(_) => None,
        }
    }
}

impl<T: Clone> Input<T> {
    fn resolve(&self, of: fn(&Loaded) -> Option<&T>) -> Result<Option<T>, String> {
        match self {
            Self::Here(material) => Ok(Some(material.clone())),
            Self::Secret(slot) => content(slot, of),
        }
    }

    fn slot(&self) -> Option<&Arc<Slot>> {
        match self {
            Self::Here(_) => None,
            Self::Secret(slot) => Some(slot),
        }
    }
}

fn content<T: Clone>(slot: &Slot, of: fn(&Loaded) -> Option<&T>) -> Result<Option<T>, String> {
    let Some(loaded) = slot.content() else { return Ok(None) };
    let material = of(&loaded).ok_or_else(|| format!("the secret {} is of another kind", slot.name))?;
    Ok(Some(material.clone()))
}

/// The secret's over the default, as protobuf merges messages.
fn combined(default: &ValidationMaterial, secret: ValidationMaterial) -> ValidationMaterial {
    let model = default.model.merged(&secret.model);
    // A list of trust domains comes from one of the two, with its bundles.
    let bundles = if secret.model.spiffe.is_some() { secret.bundles } else { default.bundles.clone() };
    // What the system trusts is said by the model alone.
    let trusted_ca = match secret.model.trusted_ca {
        Some(_) => secret.trusted_ca,
        None => default.trusted_ca.clone(),
    };
    let crl = secret.crl.or_else(|| default.crl.clone());
    ValidationMaterial { model: Arc::new(model), trusted_ca, crl, bundles }
}

fn as_certificate(loaded: &Loaded) -> Option<&CertificateMaterial> {
    match loaded {
        Loaded::Certificate(material) => Some(material),
        Loaded::Validation(_) | Loaded::TicketKeys(_) | Loaded::Generic => None,
    }
}

fn as_validation(loaded: &Loaded) -> Option<&ValidationMaterial> {
    match loaded {
        Loaded::Validation(material) => Some(material),
        Loaded::Certificate(_) | Loaded::TicketKeys(_) | Loaded::Generic => None,
    }
}

fn as_ticket_keys(loaded: &Loaded) -> Option<&Vec<Material>> {
    match loaded {
        Loaded::TicketKeys(keys) => Some(keys),
        Loaded::Certificate(_) | Loaded::Validation(_) | Loaded::Generic => None,
    }
}
