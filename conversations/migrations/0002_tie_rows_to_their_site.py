"""Tie each row to its owner by site and id together, so that no row can hang on another site's.

Plain foreign keys look past row-level security (DESIGN 6). As Django's own, these are checked at commit;
unlike Django's, the database removes what hangs on a removed row.
"""

from django.db import migrations

# table, its column, the table it points to; each pair of columns begins with site_id
TIES = [
    ("conversations_conversation", "membership_id", "conversations_membership"),
    ("conversations_login", "membership_id", "conversations_membership"),
    ("conversations_idempotency_key", "membership_id", "conversations_membership"),
    ("conversations_message", "conversation_id", "conversations_conversation"),
    ("conversations_message", "reply_to_id", "conversations_message"),
    ("conversations_generation", "message_id", "conversations_message"),
    ("conversations_reply_chunk", "message_id", "conversations_message"),
]


def _tie(table, column, target):
    name = f"{table}_{column}_of_site"
    return migrations.RunSQL(
        sql=f"""
            ALTER TABLE {table} ADD CONSTRAINT {name}
            FOREIGN KEY (site_id, {column}) REFERENCES {target} (site_id, id)
            ON DELETE CASCADE DEFERRABLE INITIALLY DEFERRED
        """,
        reverse_sql=f"ALTER TABLE {table} DROP CONSTRAINT {name}",
    )


class Migration(migrations.Migration):
    dependencies = [("conversations", "0001_lay_the_rows")]

    operations = [_tie(*tie) for tie in TIES]
