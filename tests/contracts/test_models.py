"""Every model says whose its rows are, and forgetting to ask is loud."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from django.apps import apps
from django.db import models

from conversations.models import Site, TenantModel, UnscopedQuery

SHARED = {
    "Site": "what the others are scoped by",
    "User": "a person; what they may do is said by their memberships",
    "RateWindow": "counts under hashed or opaque keys, worthless after a minute",
    "Worker": "a process; it serves all sites",
    "WorkerLog": "text of several sites in one row, for seconds; only the engine's statements touch it",
    "Endpoint": "an address of a model; the sites share them",
    "EndpointRevision": "the endpoints as they were; the sites share them",
    "RegistryRevision": "one row: the revision of the endpoints",
}

OURS = [*apps.get_app_config("conversations").get_models(), *apps.get_app_config("providers").get_models()]
TENANT = [model for model in OURS if issubclass(model, TenantModel)]


@pytest.mark.parametrize("model", OURS, ids=lambda model: model.__name__)
def test_every_model_has_a_path_to_a_site_or_is_named_as_shared(model: type[models.Model]) -> None:
    if issubclass(model, TenantModel):
        field = model._meta.get_field("site")
        assert field.remote_field is not None and field.remote_field.model is Site and not field.null
    else:
        assert model.__name__ in SHARED


def query_methods() -> Iterator[str]:
    """Names of everything public on a manager that asks the database for rows."""
    plain = models.Manager()
    own = {"check", "contribute_to_class", "db_manager", "deconstruct", "from_queryset", "get_queryset"}
    for name in dir(plain):
        if not name.startswith("_") and name not in own and callable(getattr(plain, name)):
            yield name


@pytest.mark.parametrize("name", sorted(query_methods()))
@pytest.mark.parametrize("model", TENANT, ids=lambda model: model.__name__)
def test_an_unscoped_manager_is_shut(model: Any, name: str) -> None:
    with pytest.raises(UnscopedQuery):
        getattr(model.objects, name)()
    with pytest.raises(UnscopedQuery):
        getattr(model.objects.db_manager("default"), name)()


def test_the_list_of_query_methods_is_the_real_one() -> None:
    names = set(query_methods())
    assert {"all", "get", "aget", "filter", "exists", "aexists", "create", "bulk_create", "raw", "none"} <= names


@pytest.mark.parametrize("model", TENANT, ids=lambda model: model.__name__)
def test_the_admin_and_cascades_have_their_own_manager(model: type[models.Model]) -> None:
    assert model._meta.default_manager_name == "across_sites"
    assert model._meta.base_manager_name == "across_sites"


@pytest.mark.parametrize("model", TENANT, ids=lambda model: model.__name__)
def test_the_door_of_a_membership_shows_nothing_of_others(model: Any, world: Any) -> None:
    sql = str(model.objects.visible_to(world.alice).query)
    assert f'"{model._meta.db_table}"."site_id" = {world.acorn.pk}' in sql
    if model.objects.member_path is not None:
        assert sql.count(f"= {world.alice.pk}") >= 1
