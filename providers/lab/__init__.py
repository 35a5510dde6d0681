"""The provider lab as a page of the admin: what `try_provider` prints, for staff who may see endpoints."""
