//! Borrows and opaque types in a signature.

use proc_macro2::TokenStream;
use quote::ToTokens;
use syn::visit_mut::{self, VisitMut};
use syn::{
    BoundLifetimes, GenericParam, Lifetime, ParenthesizedGenericArguments, Token, TraitBound, Type,
    TypeBareFn, TypeInfer, TypeReference,
};

/// A lifetime in a type that is not `'static`.
pub(crate) struct Borrow {
    /// The tokens to point at.
    pub(crate) tokens: TokenStream,
    /// What to write, as in "`String` rather than `&str`".
    pub(crate) fix: String,
}

/// Finds what `ty` borrows. Lifetimes that a `for<'a>`, a function pointer or
/// an `Fn(&T)` binds borrow nothing.
pub(crate) fn borrows(ty: &Type) -> Vec<Borrow> {
    let mut finder = Finder::default();
    finder.visit_type_mut(&mut ty.clone());
    finder.found
}

#[derive(Default)]
struct Finder {
    found: Vec<Borrow>,
    /// The lifetimes that a surrounding `for<>` binds.
    bound: Vec<Lifetime>,
    /// How many signatures surround this place, in which an elided lifetime
    /// is bound.
    signatures: usize,
}

impl Finder {
    fn borrows(&self, lifetime: Option<&Lifetime>) -> bool {
        match lifetime {
            None => self.signatures == 0,
            Some(lifetime) if lifetime.ident == "_" => self.signatures == 0,
            Some(lifetime) => lifetime.ident != "static" && !self.bound.contains(lifetime),
        }
    }

    /// Visits what `binder` surrounds.
    fn within(&mut self, binder: Option<&BoundLifetimes>, visit: impl FnOnce(&mut Self)) {
        let outer = self.bound.len();
        if let Some(binder) = binder {
            for param in &binder.lifetimes {
                if let GenericParam::Lifetime(param) = param {
                    self.bound.push(param.lifetime.clone());
                }
            }
        }
        visit(self);
        self.bound.truncate(outer);
    }
}

impl VisitMut for Finder {
    fn visit_type_reference_mut(&mut self, ty: &mut TypeReference) {
        if self.borrows(ty.lifetime.as_ref()) {
            self.found.push(Borrow {
                tokens: ty.to_token_stream(),
                fix: owned_for(ty),
            });
        } else {
            self.visit_type_mut(&mut ty.elem);
        }
    }

    fn visit_lifetime_mut(&mut self, lifetime: &mut Lifetime) {
        if self.borrows(Some(lifetime)) {
            self.found.push(Borrow {
                tokens: lifetime.to_token_stream(),
                fix: format!("`'static` rather than `{lifetime}`, or an owned type"),
            });
        }
    }

    fn visit_type_bare_fn_mut(&mut self, ty: &mut TypeBareFn) {
        self.signatures += 1;
        let binder = ty.lifetimes.take();
        self.within(binder.as_ref(), |finder| {
            visit_mut::visit_type_bare_fn_mut(finder, ty);
        });
        self.signatures -= 1;
    }

    fn visit_parenthesized_generic_arguments_mut(
        &mut self,
        arguments: &mut ParenthesizedGenericArguments,
    ) {
        self.signatures += 1;
        visit_mut::visit_parenthesized_generic_arguments_mut(self, arguments);
        self.signatures -= 1;
    }

    fn visit_trait_bound_mut(&mut self, bound: &mut TraitBound) {
        let binder = bound.lifetimes.take();
        self.within(binder.as_ref(), |finder| {
            visit_mut::visit_trait_bound_mut(finder, bound);
        });
    }
}

/// Names the owned type to write for the reference `ty`.
fn owned_for(ty: &TypeReference) -> String {
    let elem = text(&*ty.elem);
    let given = text(ty);
    if ty.mutability.is_some() {
        return format!(
            "`{elem}` rather than `{given}` and return it, or share it as `Arc<Mutex<{elem}>>`"
        );
    }
    match &*ty.elem {
        Type::Slice(slice) => format!("`Vec<{}>` rather than `{given}`", text(&*slice.elem)),
        Type::TraitObject(object) => {
            format!(
                "`Arc<dyn {} + Send + Sync>` rather than `{given}`",
                text(&object.bounds)
            )
        }
        Type::ImplTrait(_) => format!("`{elem}` rather than `{given}`"),
        _ => match elem.rsplit("::").next() {
            Some("str") => format!("`String` rather than `{given}`"),
            Some("Path") => format!("`PathBuf` rather than `{given}`"),
            Some("OsStr") => format!("`OsString` rather than `{given}`"),
            Some("CStr") => format!("`CString` rather than `{given}`"),
            _ => format!("`{elem}` rather than `{given}`, or share it as `Arc<{elem}>`"),
        },
    }
}

/// Writes a type as people do, without spaces between its tokens.
pub(crate) fn text(tokens: impl ToTokens) -> String {
    let mut text = tokens.to_token_stream().to_string();
    for (from, to) in [
        (" ::", "::"),
        (":: ", "::"),
        (" <", "<"),
        ("< ", "<"),
        (" >", ">"),
        ("& ", "&"),
        (" ,", ","),
        (" ;", ";"),
        ("[ ", "["),
        (" ]", "]"),
        ("( ", "("),
        (" )", ")"),
        (" (", "("),
        ("' ", "'"),
    ] {
        text = text.replace(from, to);
    }
    text
}

/// Writes `_` for each `impl Trait` in `ty`, as a closure's annotation has to.
pub(crate) fn without_opaque(ty: &Type) -> Type {
    let mut ty = ty.clone();
    Opaque::default().visit_type_mut(&mut ty);
    ty
}

/// Tells whether `ty` has an `impl Trait` in it.
pub(crate) fn is_opaque(ty: &Type) -> bool {
    let mut opaque = Opaque::default();
    opaque.visit_type_mut(&mut ty.clone());
    opaque.found
}

#[derive(Default)]
struct Opaque {
    found: bool,
}

impl VisitMut for Opaque {
    fn visit_type_mut(&mut self, ty: &mut Type) {
        if let Type::ImplTrait(_) = ty {
            self.found = true;
            *ty = Type::Infer(TypeInfer {
                underscore_token: Token![_](proc_macro2::Span::call_site()),
            });
        } else {
            visit_mut::visit_type_mut(self, ty);
        }
    }
}
