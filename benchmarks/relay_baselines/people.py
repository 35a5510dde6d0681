"""The rows the benchmark needs in the product's database; run by product.py inside the product's settings.

python -m benchmarks.relay_baselines.people PASSWORD FIRST_CHAT_ID COUNT
"""

import os
import sys

import django

SITE, USER = "bench", "bench"


def main(first: int, count: int) -> str:
    """Return an access token of an approved member, who has `count` conversations from the first id on."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "chatsite.settings")
    django.setup()
    from conversations.db import database_now, tenant
    from conversations.models.conversations import Conversation
    from conversations.models.sites import Membership, Site, User
    from conversations.tenancy.tokens import start_login

    site, _ = Site.objects.get_or_create(slug=SITE, defaults={"name": "测速", "locale": "zh-hans"})
    user, _ = User.objects.get_or_create(username=USER)
    with tenant(site.pk):
        member, _ = Membership.across_sites.get_or_create(
            site=site, user=user, defaults={"status": Membership.Status.APPROVED}
        )
        now = database_now()
        Conversation.across_sites.bulk_create(
            (
                Conversation(id=number, site=site, membership=member, title="测速", last_message_at=now)
                for number in range(first, first + count)
            ),
            batch_size=1000,
        )
        return start_login(member).access


if __name__ == "__main__":
    print(main(int(sys.argv[1]), int(sys.argv[2])))
