"""Every setting of the product, read from the environment; `docs/settings.md` explains each.

Each has a default that works in a bare clone. What is wrong is reported by `chatsite/checks.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from chatsite import postgres
from chatsite.env import (
    Problem,
    env_bool,
    env_choice,
    env_float,
    env_int,
    env_list,
    env_path,
    env_str,
    parse_database_url,
    problems,
    read_dotenv,
)
from providers.credentials import load_or_create_key_file

BASE_DIR = Path(__file__).resolve().parent.parent
read_dotenv(BASE_DIR / ".env")

# --- Where things live -------------------------------------------------------------------------------
VAR_DIR = env_path("VAR_DIR", BASE_DIR / "var")
HOST = env_str("HOST", "127.0.0.1")
PORT = env_int("PORT", 8000, least=0, most=65535)
WORKERS = env_int("WORKERS", 2, least=1, most=64)

# --- Secrets -----------------------------------------------------------------------------------------
VAR_DIR.mkdir(parents=True, exist_ok=True)
SECRET_KEY = env_str("SECRET_KEY") or load_or_create_key_file(VAR_DIR / "django.key")[0]
SECRET_KEYS = env_list("SECRET_KEYS") or load_or_create_key_file(VAR_DIR / "secret.keys")
DEMO_PASSWORD = env_str("DEMO_PASSWORD")

# --- Django ------------------------------------------------------------------------------------------
DEBUG = env_bool("DEBUG", False)
DEFAULT_EXCEPTION_REPORTER_FILTER = "chatsite.debug.QuietReporterFilter"
ALLOWED_HOSTS = env_list("ALLOWED_HOSTS", f"localhost,127.0.0.1,[::1],testserver,{HOST}")
CSRF_TRUSTED_ORIGINS = env_list("CSRF_TRUSTED_ORIGINS")
INSTALLED_APPS = [
    "daphne",
    "unfold.apps.BasicAppConfig",
    "unfold.contrib.filters",
    "chatsite.apps.ChatAdminConfig",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "rest_framework",
    "drf_spectacular",
    "drf_spectacular_sidecar",
    "chatsite.apps.ChatsiteConfig",
    "providers.apps.ProvidersConfig",
    "conversations.apps.ConversationsConfig",
]
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.locale.LocaleMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]
ROOT_URLCONF = "chatsite.urls"
ASGI_APPLICATION = "chatsite.asgi.application"
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]
LOGIN_URL = "admin:login"
LOGIN_REDIRECT_URL = "admin:index"
AUTH_USER_MODEL = "conversations.User"
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator"},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
]
LANGUAGE_CODE = "zh-hans"
LANGUAGES = [("zh-hans", "简体中文"), ("en", "English")]
TIME_ZONE = env_str("TIME_ZONE", "Asia/Shanghai")
USE_TZ = True
STATIC_URL = "static/"
STATICFILES_DIRS = [BASE_DIR / "templates" / "static"]
STATIC_ROOT = VAR_DIR / "static"
STATIC_ROOT.mkdir(exist_ok=True)  # WhiteNoise warns of a missing one, though it finds files without it
WHITENOISE_USE_FINDERS = True
WHITENOISE_AUTOREFRESH = DEBUG
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
APPEND_SLASH = True
SECURE_CONTENT_TYPE_NOSNIFF = True
X_FRAME_OPTIONS = "DENY"
SESSION_COOKIE_HTTPONLY = True
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = env_bool("COOKIES_SECURE", False)
DATA_UPLOAD_MAX_MEMORY_SIZE = 1024 * 1024
REQUEST_BODY_MAX_BYTES = 1024 * 1024
REQUEST_READ_SECONDS = env_float("REQUEST_READ_SECONDS", 60, least=0.1, most=3600)

# --- PostgreSQL --------------------------------------------------------------------------------------
DATABASE_URL = env_str("DATABASE_URL")
EMBEDDED_POSTGRES = not DATABASE_URL
DB_POOL_SIZE = env_int("DB_POOL_SIZE", 10, least=2, most=500)
DB_ENGINE_POOL_SIZE = env_int("DB_ENGINE_POOL_SIZE", 4, least=2, most=100)
DB_LISTEN = env_bool("DB_LISTEN", True)


def _database() -> dict[str, Any]:
    try:
        database: dict[str, Any] = parse_database_url(DATABASE_URL or postgres.dsn(VAR_DIR))
    except ValueError as error:
        problems.append(Problem("DATABASE_URL", f"DATABASE_URL is not usable: {error}."))
        database = parse_database_url(postgres.dsn(VAR_DIR))
    database["OPTIONS"]["pool"] = {"min_size": 1, "max_size": DB_POOL_SIZE, "timeout": 10}
    return {"ENGINE": "django.db.backends.postgresql", "CONN_HEALTH_CHECKS": True, **database}


DATABASES = {"default": _database()}

# --- The engine --------------------------------------------------------------------------------------
LEASE_SECONDS = env_float("LEASE_SECONDS", 5, least=2, most=300)
DRAIN_SECONDS = env_float("DRAIN_SECONDS", 15, least=0, most=3600)
REPLY_MAX_CHARS = env_int("REPLY_MAX_CHARS", 200_000, least=100, most=10_000_000)
ENGINE_TICK_MS = env_float("ENGINE_TICK_MS", 20, least=1, most=1000)
ENGINE_FOLD_SECONDS = env_float("ENGINE_FOLD_SECONDS", 3, least=0.2, most=60)
ENGINE_DATABASE_GRACE_SECONDS = env_float("ENGINE_DATABASE_GRACE_SECONDS", 10, least=0, most=600)
PROMPT_MAX_TOKENS = env_int("PROMPT_MAX_TOKENS", 24_000, least=100, most=10_000_000)
STREAM_HEARTBEAT_SECONDS = env_float("STREAM_HEARTBEAT_SECONDS", 10, least=0.1, most=60)
STREAM_BEHIND_MAX_BYTES = env_int("STREAM_BEHIND_MAX_BYTES", 1024 * 1024, least=1024, most=1 << 30)

# --- Providers ---------------------------------------------------------------------------------------
LLM_BASE_URL = env_str("LLM_BASE_URL")
LLM_API_KEY = env_str("LLM_API_KEY")
LLM_MODEL = env_str("LLM_MODEL")
LLM_TOOLS = env_bool("LLM_TOOLS", True)
STAND_IN = env_bool("STAND_IN", True)
PROVIDER_ALLOWED_ADDRESSES = env_list("PROVIDER_ALLOWED_ADDRESSES")
PROVIDER_TRANSPORT = env_choice("PROVIDER_TRANSPORT", ("fast", "stock"), "fast")
PROVIDER_CONNECT_SECONDS = env_float("PROVIDER_CONNECT_SECONDS", 10, least=0.05, most=300)
PROVIDER_FIRST_SECONDS = env_float("PROVIDER_FIRST_SECONDS", 60, least=0.05, most=3600)
PROVIDER_IDLE_SECONDS = env_float("PROVIDER_IDLE_SECONDS", 60, least=0.05, most=3600)
PROVIDER_TOTAL_SECONDS = env_float("PROVIDER_TOTAL_SECONDS", 1800, least=0.1, most=86_400)
PROVIDER_LINE_MAX_BYTES = env_int("PROVIDER_LINE_MAX_BYTES", 8 * 1024 * 1024, least=1024, most=1 << 30)

# --- Voice --------------------------------------------------------------------------------------------
VOICE_CALLBACK_BASE_URL = env_str("VOICE_CALLBACK_BASE_URL")
VOICE_PLATFORM_SECONDS = env_float("VOICE_PLATFORM_SECONDS", 10, least=0.1, most=300)

# --- Knowledge ---------------------------------------------------------------------------------------
KNOWLEDGE_FILE_MAX_BYTES = env_int(
    "KNOWLEDGE_FILE_MAX_BYTES", 20 * 1024 * 1024, least=1024, most=100 * 1024 * 1024
)
EMBEDDING_BASE_URL = env_str("EMBEDDING_BASE_URL")
EMBEDDING_API_KEY = env_str("EMBEDDING_API_KEY")
EMBEDDING_MODEL = env_str("EMBEDDING_MODEL")
EMBEDDING_DIMENSIONS = env_int("EMBEDDING_DIMENSIONS", 0, least=0, most=16_000)

# --- Sign-in and limits ------------------------------------------------------------------------------
ACCESS_TOKEN_SECONDS = env_int("ACCESS_TOKEN_SECONDS", 900, least=5, most=86_400)
REFRESH_TOKEN_DAYS = env_float("REFRESH_TOKEN_DAYS", 30, least=0.001, most=3650)
THROTTLE = env_bool("THROTTLE", True)
THROTTLE_SENDS_PER_MINUTE = env_int("THROTTLE_SENDS_PER_MINUTE", 60, least=1, most=1_000_000)
THROTTLE_SIGN_INS_PER_MINUTE = env_int("THROTTLE_SIGN_INS_PER_MINUTE", 20, least=1, most=1_000_000)

# --- Operations --------------------------------------------------------------------------------------
METRICS_TOKEN = env_str("METRICS_TOKEN")
REDIS_URL = env_str("REDIS_URL")
LOG_LEVEL = env_choice("LOG_LEVEL", ("debug", "info", "warning", "error"), "info").upper()
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"json": {"()": "chatsite.logs.JsonFormatter"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "json"}},
    "root": {"handlers": ["stderr"], "level": LOG_LEVEL},
    "loggers": {
        "django": {"level": LOG_LEVEL, "propagate": True, "handlers": []},
        "django.server": {"level": "WARNING", "propagate": True, "handlers": []},
        "httpx": {"level": "WARNING"},
        "httpcore": {"level": "WARNING"},
        "daphne": {"level": "WARNING"},
        "uvicorn": {"level": "WARNING"},
        "psycopg.pool": {"level": "ERROR"},
    },
}

# --- REST --------------------------------------------------------------------------------------------
REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": ["conversations.api.authentication.TokenAuthentication"],
    "DEFAULT_PERMISSION_CLASSES": ["conversations.api.permissions.IsApproved"],
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    "DEFAULT_PARSER_CLASSES": ["conversations.api.parsers.JsonParser"],
    "DEFAULT_SCHEMA_CLASS": "drf_spectacular.openapi.AutoSchema",
    "EXCEPTION_HANDLER": "conversations.api.errors.handle_exception",
    "UNAUTHENTICATED_USER": None,
    "UNICODE_JSON": True,
}
SPECTACULAR_SETTINGS = {
    "TITLE": "Chat backend",
    "DESCRIPTION": "Conversations with language models for many sites. Replies are never lost, never doubled.",
    "VERSION": "1",
    "OAS_VERSION": "3.1.1",
    "SERVE_INCLUDE_SCHEMA": False,
    "SERVE_PERMISSIONS": ["rest_framework.permissions.AllowAny"],
    "SERVE_AUTHENTICATION": [],
    "SWAGGER_UI_DIST": "SIDECAR",
    "SWAGGER_UI_FAVICON_HREF": "SIDECAR",
    "COMPONENT_SPLIT_REQUEST": True,
    "PREPROCESSING_HOOKS": ["conversations.api.openapi.one_path_each"],
    "POSTPROCESSING_HOOKS": [
        "drf_spectacular.hooks.postprocess_schema_enums",
        "conversations.api.openapi.add_streams",
        "conversations.api.openapi_rooms.add_rooms",
        "conversations.api.openapi_callback.add_callback",
        "conversations.api.openapi.add_problems",
    ],
    "ENUM_NAME_OVERRIDES": {
        "MembershipStatus": "conversations.models.Membership.Status",
        "MessageStatus": "conversations.models.Message.Status",
        "DocumentStatus": "conversations.models.Document.Status",
        "DocumentKind": "conversations.models.Document.Kind",
    },
}
UNFOLD: dict[str, Any] = {
    "SITE_TITLE": "chatsite.adminsite.title",
    "SITE_HEADER": "chatsite.adminsite.title",
    "SITE_SYMBOL": "forum",
    "SITE_FAVICONS": [{"rel": "icon", "type": "image/svg+xml", "href": "chatsite.adminsite.favicon"}],
    "SHOW_HISTORY": True,
    "SHOW_VIEW_ON_SITE": True,
    "SHOW_LANGUAGES": True,
    "BORDER_RADIUS": "8px",
    "COLORS": {
        "primary": {
            "50": "#f0f7f5",
            "100": "#dceee9",
            "200": "#bbdcd4",
            "300": "#8dc3b8",
            "400": "#57a597",
            "500": "#338878",
            "600": "#1d6f63",
            "700": "#175a50",
            "800": "#144841",
            "900": "#123c36",
            "950": "#082420",
        }
    },
    "SIDEBAR": {"navigation": "chatsite.adminsite.navigation"},
    "DASHBOARD_CALLBACK": "conversations.admin.dashboard.add_figures",
}
