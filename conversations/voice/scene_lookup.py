"""Sites and scenes by their names, for commands."""

from __future__ import annotations

from conversations.models import Site, VoiceScene


def site_of(slug: str) -> Site:
    """Return the site of this slug.

    Raises: LookupError that names those there are.
    """
    site = Site.objects.filter(slug=slug).first()
    if site is None:
        known = ", ".join(Site.objects.values_list("slug", flat=True)[:20])
        raise LookupError(f"There is no site {slug!r}. Known: {known}.")
    return site


def scene_of(site: Site, key: str) -> VoiceScene:
    """Return the scene of this id.

    Raises: LookupError that names those there are.
    """
    rows = VoiceScene.objects.for_site(site).select_related("site")
    scene: VoiceScene | None = rows.filter(key=key).first()
    if scene is None:
        known = ", ".join(rows.values_list("key", flat=True)[:20])
        raise LookupError(f"{site.slug} has no scene {key!r}. Known: {known}.")
    return scene
