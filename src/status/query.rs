//! What is asked for behind the path.

use hyper::Uri;

use super::page::{Order, Sorting};
use super::report::SortBy;

/// The fields of a query, decoded.
pub(super) struct Query(Vec<(String, String)>);

impl Query {
    pub(super) fn of(uri: &Uri) -> Self {
        let fields = form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes());
        Self(fields.map(|(name, value)| (name.into_owned(), value.into_owned())).collect())
    }

    /// The value of a field, the first if there are several.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(other, _)| other == name).map(|(_, value)| &**value)
    }

    pub(super) fn number(&self, name: &str) -> Option<usize> {
        self.get(name)?.parse().ok()
    }

    /// How connections are to be sorted.
    ///
    /// # Errors
    /// A text for people, if they cannot.
    pub(super) fn sorting(&self) -> Result<Sorting, String> {
        let by = match self.get("sort") {
            None => SortBy::default(),
            Some(word) => {
                let quoted = serde_json::Value::from(word);
                serde_json::from_value(quoted)
                    .map_err(|error| format!("connections are not sorted so: {error}"))?
            }
        };
        let order = if self.get("reverse") == Some("1") { Order::Reversed } else { Order::Usual };
        Ok(Sorting { by, order })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(text: &'static str) -> Query {
        Query::of(&Uri::from_static(text))
    }

    #[test]
    fn fields_are_decoded() {
        let query = query("/drain?target=%5Ba%5D%3A1&pipe=a+b");
        assert_eq!(
            (query.get("target"), query.get("pipe"), query.get("x")),
            (Some("[a]:1"), Some("a b"), None)
        );
    }

    #[test]
    fn an_order_that_there_is_not_is_an_error_that_names_those_that_there_are() {
        let sorting = query("/?sort=to_target&reverse=1").sorting();
        assert_eq!(sorting, Ok(Sorting { by: SortBy::ToTarget, order: Order::Reversed }));
        assert_eq!(query("/").sorting(), Ok(Sorting::default()));
        let error = query("/?sort=colour").sorting().unwrap_err();
        assert!(error.contains("colour") && error.contains("from_target"), "{error}");
    }
}
