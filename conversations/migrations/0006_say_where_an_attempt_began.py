from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("conversations", "0005_grant_endpoints"),
    ]

    operations = [
        migrations.AddField(
            model_name="generation",
            name="continued_from",
            field=models.IntegerField(db_default=0, default=0),
        ),
    ]
