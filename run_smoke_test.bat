:; # A batch file for Windows and a script for sh in one: what sh runs on these lines, cmd takes for labels.
:; here=$(dirname "$0")
:; if [ -x "$here/.venv/bin/t2i" ]; then exec "$here/.venv/bin/t2i" smoke "$@"; fi
:; if [ -x "$here/.venv/Scripts/t2i.exe" ]; then exec "$here/.venv/Scripts/t2i.exe" smoke "$@"; fi
:; if command -v t2i >/dev/null 2>&1; then exec t2i smoke "$@"; fi
:; echo "t2i is not installed. Install it with: python3 -m venv .venv && .venv/bin/pip install ." >&2; exit 1
@echo off
if exist "%~dp0.venv\Scripts\t2i.exe" (
    "%~dp0.venv\Scripts\t2i.exe" smoke %*
    exit /b
)
where t2i >nul 2>nul
if not errorlevel 1 (
    t2i smoke %*
    exit /b
)
echo t2i is not installed. Install it with: py -m venv .venv ^&^& .venv\Scripts\pip install . 1>&2
exit /b 1
