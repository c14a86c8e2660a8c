#!/bin/sh
# Installs the BAMF agent on Linux, or upgrades and repairs what is there.
#
#   curl -fsSL https://github.com/mattrobinsonsre/bamf/releases/latest/download/install.sh |
#       sudo sh -s -- --platform-url https://bamf.example.com
#
# Nothing of a release is believed, unpacked or run before its signature was checked, and nothing on the machine is
# changed before everything was checked. How to check by hand instead, and what is done where: docs/install.md.
#
# All of it is one function, called on the last line, in braces: a download that is cut off anywhere runs nothing. What is
# inside is not indented for it.
bamf_agent_install() {
set -euf
umask 022
LC_ALL=C
export LC_ALL
PATH=${PATH:-/usr/bin:/bin}:/usr/sbin:/sbin

# --- what the release process fills in ----------------------------------------

# minisign public keys, comma separated, the same as BAMF_TRUSTED_KEYS of the release build. The release replaces this
# line, and only this line is exactly so. Without a key here, --trusted-key must name one.
TRUSTED_KEYS=''

# --- what is where -------------------------------------------------------------

unit=bamf-agent.service
units=/etc/systemd/system
config=/etc/bamf/agent.yaml
# The unit gives this file to the service (EnvironmentFile=); only root reads it.
env_file=/etc/bamf/agent.env
sysusers=/etc/sysusers.d/bamf-agent.conf
updater=/var/lib/bamf-agent-updater
default_source=https://github.com/mattrobinsonsre/bamf
# What is the Go agent's and has to make room is kept under its name with this added.
kept=.go-agent
# Seconds. A join, a first heartbeat and an event stream take well under one.
connect_limit=60
# Bytes; the agent's own limits.
checksums_limit=1048576
signature_limit=16384
asset_limit=268435456

# --- words ---------------------------------------------------------------------

say() { printf '%s\n' "$*"; }
warn() { printf 'warning: %s\n' "$*" >&2; }

# die EXIT-CODE SENTENCE: the codes are those of the agent (contract section 1).
die() {
    die_code=$1
    shift
    # What was done before stays done, and should be known.
    [ ! -s "${work:-/dev/null}/done" ] || cat "$work/done" >&2
    printf 'install.sh: %s\n' "$*" | printable >&2
    exit "$die_code"
}

# Without what a terminal would obey: a message may quote a server.
printable() { tr -d '\000-\010\013-\037\177'; }

usage() {
    cat <<'USAGE'
Installs the BAMF agent, or upgrades and repairs it. Needs root.

usage: install.sh [flags]; each flag is also a variable BAMF_INSTALL_<NAME>

  --platform-url URL    the platform, https://…; written to /etc/bamf/agent.yaml
  --token T             join token. BAMF_INSTALL_TOKEN is safer: other users can see a command line
  --version V           version to install [default: what the platform reports]
  --source URL|DIR      where releases come from [default: the project's, or the one configured]
  --trusted-key K       minisign public key of the releases, or several with commas [default: the built-in]
  --prefix DIR          installs DIR/bin/bamf-agent [default: /usr/local, or where it is installed]
  --no-start            leave the service as it is; it starts at the next boot
  --yes                 ask nothing

Example:
  curl -fsSL …/install.sh | sudo BAMF_INSTALL_TOKEN="$TOKEN" sh -s -- --platform-url https://bamf.example.com
USAGE
}

# --- the command line ----------------------------------------------------------

is_yes() {
    case $1 in
        '' | 0 | no | false) return 1 ;;
        *) return 0 ;;
    esac
}

read_command_line() {
    version=${BAMF_INSTALL_VERSION:-} source=${BAMF_INSTALL_SOURCE:-} prefix=${BAMF_INSTALL_PREFIX:-}
    platform_url=${BAMF_INSTALL_PLATFORM_URL:-} token=${BAMF_INSTALL_TOKEN:-}
    trusted_key=${BAMF_INSTALL_TRUSTED_KEY:-}
    no_start='' yes=''
    ! is_yes "${BAMF_INSTALL_NO_START:-}" || no_start=1
    ! is_yes "${BAMF_INSTALL_YES:-}" || yes=1
    # What this script starts must not inherit the token.
    unset BAMF_INSTALL_TOKEN
    while [ $# -gt 0 ]; do
        case $1 in
            --no-start) no_start=1 && shift && continue ;;
            --yes) yes=1 && shift && continue ;;
            -h | --help) usage && exit 0 ;;
            --version | --source | --platform-url | --token | --trusted-key | --prefix)
                [ $# -ge 2 ] || die 2 "$1 needs a value; --help lists the flags"
                option=$1 value=$2
                shift 2
                ;;
            --*=*)
                option=${1%%=*} value=${1#*=}
                shift
                ;;
            *) die 2 "unknown argument $1; --help lists the flags" ;;
        esac
        case $option in
            --version) version=$value ;;
            --source) source=$value ;;
            --platform-url) platform_url=$value ;;
            --token) token=$value ;;
            --trusted-key) trusted_key=$value ;;
            --prefix) prefix=$value ;;
            *) die 2 "unknown flag $option; --help lists the flags" ;;
        esac
    done
    config_was=''
    given_platform_url=$platform_url given_source=$source given_key=$trusted_key
}

# --- what there is to work with ------------------------------------------------

look_at_machine() {
    [ "$(id -u)" = 0 ] || die 77 "installing needs root: run it with sudo, as in \`curl … | sudo sh -s -- …\`"
    [ "$(uname -s)" = Linux ] || die 21 "releases are built for Linux, and this is $(uname -s)"
    case $(uname -m) in
        # The last four digits of an ELF header's first twenty bytes name the machine.
        x86_64 | amd64) arch=amd64 elf_machine=3e00 ;;
        aarch64 | arm64) arch=arm64 elf_machine=b700 ;;
        *) die 21 "releases are built for amd64 and arm64, and this is $(uname -m)" ;;
    esac
    for tool in sha256sum mktemp base64 od awk sed grep; do
        command -v "$tool" >/dev/null || die 1 "$tool is not installed"
    done
    systemd=''
    [ ! -d /run/systemd/system ] || systemd=1
    find_fetcher
    find_verifier
    work=$(mktemp -d "${TMPDIR:-/tmp}/bamf-install.XXXXXXXX") || die 74 "no temporary directory can be made"
    staged='' made_directory='' writing=''
    : >"$work/done"
    trap 'clean_up' EXIT
    trap 'exit 129' HUP
    trap 'exit 130' INT
    trap 'exit 143' TERM
}

clean_up() {
    rm -rf "$work"
    rm -f "${staged:-/dev/null/none}" "${writing:-/dev/null/none}" 2>/dev/null || :
    [ -z "$made_directory" ] || rmdir "$prefix/bin" "$prefix" 2>/dev/null || :
}

find_fetcher() {
    if command -v curl >/dev/null; then
        fetcher=curl
    elif command -v wget >/dev/null && wget --version 2>/dev/null | grep -q 'GNU Wget'; then
        # BusyBox's wget does not check certificates.
        fetcher=wget
    else
        fetcher=''
    fi
}

find_verifier() {
    verifier=''
    if command -v minisign >/dev/null; then
        verifier=minisign
    elif command -v openssl >/dev/null; then
        # Before 3 `pkeyutl` cannot verify Ed25519, and LibreSSL is another program.
        case $(openssl version 2>/dev/null) in
            'OpenSSL '[3-9]* | 'OpenSSL '[1-9][0-9]*) verifier=openssl ;;
        esac
    fi
    [ -n "$verifier" ] ||
        die 21 "neither minisign nor openssl (3 or later) is installed, so the release's signature cannot be checked: install one of them"
}

# What an agent says that it is: empty for what is not ours, does not run, or has no version (the Go agent).
version_of() {
    [ -f "$1" ] && [ -x "$1" ] || return 0
    bounded "$1" --version 2>/dev/null </dev/null | sed -n '1s/^bamf-agent \([^ ]*\) (.*/\1/p' || :
}

is_go_agent() {
    [ -f "$1" ] && [ -x "$1" ] || return 1
    case $(bounded "$1" --version 2>&1 </dev/null || :) in
        # Go's flag package, of a program that knows no --version.
        *'flag provided but not defined'*) return 0 ;;
        *) return 1 ;;
    esac
}

bounded() {
    if command -v timeout >/dev/null; then timeout 10 "$@"; else "$@"; fi
}

# The package that a file belongs to, if any.
package_of() {
    if command -v dpkg-query >/dev/null; then
        dpkg-query -S "$1" 2>/dev/null | grep -v '^diversion ' | sed -n '1s/[:,].*//p' && return
    fi
    if command -v rpm >/dev/null; then
        rpm -qf "$1" 2>/dev/null | sed -n 1p || :
    fi
}

look_at_installation() {
    program='' replaces='' installed=''
    if [ -n "$systemd" ]; then
        program=$(systemctl show --property=ExecStart --value "$unit" 2>/dev/null |
            sed -n '1s/^{ path=\([^ ;]*\) ;.*/\1/p')
        [ "$(systemctl show --property=LoadState --value "$unit" 2>/dev/null)" != masked ] ||
            die 1 "$unit is masked: \`systemctl unmask $unit\`, then run this again"
    fi
    if [ -z "$prefix" ]; then
        prefix=/usr/local
        # An agent of ours stays where it is.
        case $program in
            */bin/bamf-agent) [ -z "$(version_of "$program")" ] || prefix=${program%/bin/bamf-agent} ;;
        esac
    fi
    case $prefix in
        /home | /home/* | /root | /root/* | /run/* | /tmp | /tmp/* | /var/tmp/*)
            die 2 "--prefix $prefix: the service does not see this directory (ProtectHome=, PrivateTmp=)"
            ;;
        *[!A-Za-z0-9/._+-]* | *//* | */ | */./* | */../* | */..) die 2 "--prefix $prefix: expected a plain absolute path" ;;
        /*) ;;
        *) die 2 "--prefix $prefix: expected an absolute path" ;;
    esac
    bin=$prefix/bin/bamf-agent
    look_at_owners
    installed=$(version_of "$bin")
    # The service that runs is somebody else's: the Go agent.
    if [ -n "$program" ] && [ -z "$(version_of "$program")" ] && is_go_agent "$program"; then
        replaces=$program
    elif [ -z "$installed" ] && is_go_agent "$bin"; then
        replaces=$bin
    fi
    # An agent of ours that is not the service does not replace itself either: the updater goes by the unit.
    [ -z "$replaces" ] || installed=''
    look_at_go_agent
}

# What its unit tells the Go agent, ours has to tell: variables, and another configuration file.
look_at_go_agent() {
    go_settings=''
    [ -n "$replaces" ] && [ -n "$program" ] || return 0
    for word in $(systemctl show --property=Environment --value "$unit"); do
        case $word in BAMF_*=*) go_settings="$go_settings $word" ;; esac
    done
    for word in $(systemctl show --property=EnvironmentFiles --value "$unit" | sed 's/ (ignore_errors=.*//'); do
        if [ ! -f "$word" ] || [ "$word" = "$env_file" ]; then continue; fi
        go_settings="$go_settings $(sed -n "s/^\(BAMF_[A-Z_]*=\)[\"']\{0,1\}\([^\"' ]*\).*/\1\2/p" "$word" | tr '\n' ' ')"
    done
    named=$(systemctl show --property=ExecStart --value "$unit" |
        sed -n '1s/.* argv\[\]=[^;]* --\{0,1\}config[ =]\([^ ;]*\).*/\1/p')
    [ -z "$named" ] || [ "$named" = "$config" ] || go_settings="$go_settings BAMF_CONFIG_FILE=$named"
}

look_at_owners() {
    marker=/usr/lib/bamf-agent/install-method
    if [ -s "$marker" ] && ! grep -qx script "$marker"; then
        die 22 "the agent on this machine is managed by: $(head -n 1 "$marker"); update it with that (apt-get install --only-upgrade bamf-agent, dnf upgrade bamf-agent)"
    fi
    package=$(package_of "$bin")
    [ -z "$package" ] || die 22 "$bin belongs to the package $package: update it with the package manager, or install elsewhere with --prefix"
    for directory in "$prefix" "$prefix/bin"; do
        [ -d "$directory" ] || continue
        about=$(stat -Lc '%u:%g %A' "$directory")
        case $about in
            0:*) ;;
            *) die 22 "$directory does not belong to root, who will run what lies in it" ;;
        esac
        case $about in
            *' '????????w*) die 22 "$directory can be written by everybody: \`chmod o-w $directory\`" ;;
            0:0' '*) ;;
            *' '?????w*) die 22 "$directory can be written by its group: \`chmod g-w $directory\`, or install elsewhere with --prefix" ;;
        esac
    done
}

# --- settings ------------------------------------------------------------------

# The value of a top-level key of agent.yaml, or of a key below `update:`; lists with commas. It reads what this script
# writes and what people usually write; what it cannot read counts as not set, and the flags say it instead.
configured() {
    [ -f "$config" ] || return 0
    awk -v wanted="$1" '
        function bare(text) {
            sub(/^[ \t]+/, "", text)
            if (text ~ /^#/) return ""
            sub(/[ \t]+#.*$/, "", text)
            gsub(/[][ \t\r"\047]/, "", text)
            return text
        }
        /^[^ \t#-]/ { section = $0; sub(/:.*/, "", section); listing = 0 }
        listing && /^[ \t]*-[ \t]/ { item = $0; sub(/^[ \t]*-/, "", item); found = found "," bare(item); next }
        /^[ \t]*[a-z_]+:/ {
            listing = 0
            key = $0; sub(/:.*/, "", key); indented = key ~ /^[ \t]/; sub(/^[ \t]+/, "", key)
            path = indented ? section "." key : key
            if (path != wanted) next
            value = $0; sub(/^[^:]*:/, "", value)
            found = bare(value)
            listing = found == ""
        }
        END { sub(/^,/, "", found); print found }
    ' "$config"
}

# The value of a variable of agent.env.
in_env_file() {
    [ -f "$env_file" ] || return 0
    sed -n "s/^$1=//p" "$env_file" | tail -n 1 | sed "s/^[\"']\(.*\)[\"']\$/\1/"
}

# The same, or what the Go agent's unit has for it.
variable() {
    found=$(in_env_file "$1")
    for word in $go_settings; do
        [ -n "$found" ] || [ "${word%%=*}" != "$1" ] || found=${word#*=}
    done
    printf '%s\n' "$found"
}

# Runs a program of ours under the variables that the unit gives the service.
run_agent() (
    if [ -f "$env_file" ]; then
        while IFS= read -r line || [ -n "$line" ]; do
            case $line in
                [A-Z]*=*) name=${line%%=*} ;;
                *) continue ;;
            esac
            case $name in *[!A-Z0-9_]*) continue ;; esac
            export "$name=$(in_env_file "$name")"
        done <"$env_file"
    fi
    for word in $go_settings; do
        [ -n "$(in_env_file "${word%%=*}")" ] || export "${word?}"
    done
    # The caller's own word goes before the file's.
    [ -z "$given_key" ] || export BAMF_UPDATE_TRUSTED_KEYS="$given_key"
    exec "$@"
)

settle() {
    named=$(variable BAMF_CONFIG_FILE)
    [ -z "$named" ] || config=$named
    data_dir=$(configured data_dir)
    [ -n "$data_dir" ] || data_dir=/var/lib/bamf-agent

    [ -n "$platform_url" ] || platform_url=$(variable BAMF_PLATFORM_URL)
    [ -n "$platform_url" ] || platform_url=$(variable BAMF_API_URL)
    [ -n "$platform_url" ] || platform_url=$(configured platform_url)
    [ -n "$source" ] || source=$(variable BAMF_UPDATE_SOURCE)
    [ -n "$source" ] || source=$(configured update.source)
    [ -n "$source" ] || source=$default_source
    [ -n "$trusted_key" ] || trusted_key=$(variable BAMF_UPDATE_TRUSTED_KEYS)
    [ -n "$trusted_key" ] || trusted_key=$(configured update.trusted_keys)
    [ -n "$trusted_key" ] || trusted_key=$TRUSTED_KEYS

    insecure=${BAMF_ALLOW_INSECURE_HTTP:-$(variable BAMF_ALLOW_INSECURE_HTTP)}
    [ -n "$insecure" ] || insecure=$(configured allow_insecure_http)
    case $insecure in true | 1) insecure=1 ;; *) insecure='' ;; esac

    platform_url=$(trimmed "$platform_url")
    source=$(trimmed "$source")
    source=${source%.git}
    [ -z "$platform_url" ] || check_address "$platform_url" --platform-url
    case $source in
        /*) case $source in *[![:print:]]* | *\\*) die 2 "--source $source: expected a plain path" ;; esac ;;
        *) check_address "$source" --source ;;
    esac
    check_keys
    if [ -n "$version" ]; then
        version=${version#v}
        is_version "$version" || die 2 "--version $version: expected a version such as 1.2.0"
    fi
    case $token in *[!A-Za-z0-9_.~+/=-]*) die 2 "--token: it has signs that no join token has" ;; esac
}

trimmed() {
    text=$1
    while :; do
        case $text in
            /) break ;;
            */) text=${text%/} ;;
            *) break ;;
        esac
    done
    printf '%s\n' "$text"
}

# HTTPS, and plain HTTP to this machine only: the agent's own rule.
check_address() {
    case $1 in
        *[!A-Za-z0-9:/._~%@\[\]-]*) die 2 "$2 $1: expected an address such as https://bamf.example.com" ;;
        https://?* | http://?*) ;;
        *) die 2 "$2 $1: expected an address that begins with https://" ;;
    esac
    host=${1#*://}
    host=${host%%/*}
    case $host in
        *@*) die 2 "$2: expected an address without user name and password" ;;
    esac
    case $1 in https:*) return 0 ;; esac
    [ -z "$insecure" ] || return 0
    case $host in
        localhost | localhost:* | '[::1]' | '[::1]:'*) return 0 ;;
        127.*)
            case ${host%:*} in *[!0-9.]*) ;; *) return 0 ;; esac
            ;;
    esac
    die 2 "$2 $1 is not encrypted: use https:// (http:// is for this machine only, and elsewhere with BAMF_ALLOW_INSECURE_HTTP=true)"
}

check_keys() {
    [ -n "$trusted_key" ] ||
        die 78 "this install.sh has no built-in release key: name the public key of your releases with --trusted-key"
    for key in $(printf %s "$trusted_key" | tr ',' ' '); do
        case $key in
            RW[Q-T]*) ;;
            *) die 78 "$key is not a minisign public key" ;;
        esac
        is_base64 "$key" 56 42 ||
            die 78 "$key is not a minisign public key: expected the 56 characters that follow the comment line"
    done
}

# --- versions ------------------------------------------------------------------

is_version() {
    printf '%s\n' "$1" | grep -Eqx '(0|[1-9][0-9]{0,8})[.](0|[1-9][0-9]{0,8})[.](0|[1-9][0-9]{0,8})(-[0-9A-Za-z-]+([.][0-9A-Za-z-]+)*)?'
}

# newer ONE OTHER: by semantic version precedence.
newer() {
    printf '%s\n%s\n' "$1" "$2" | awk '
        function number(text) { return text ~ /^[0-9]+$/ }
        # -1, 0 or 1
        function compare(one, other) {
            if (number(one) && number(other)) return (one + 0 > other + 0) - (one + 0 < other + 0)
            if (number(one)) return -1
            if (number(other)) return 1
            return ((one "") > (other "")) - ((one "") < (other ""))
        }
        {
            dash = index($0, "-")
            core[NR] = dash ? substr($0, 1, dash - 1) : $0
            pre[NR] = dash ? substr($0, dash + 1) : ""
        }
        END {
            split(core[1], a, "."); split(core[2], b, ".")
            for (i = 1; i <= 3; i++) if (a[i] + 0 != b[i] + 0) exit !(a[i] + 0 > b[i] + 0)
            if (pre[1] == "" || pre[2] == "") exit !(pre[1] == "" && pre[2] != "")
            n = split(pre[1], a, "."); m = split(pre[2], b, ".")
            for (i = 1; i <= n && i <= m; i++) if (order = compare(a[i], b[i])) exit !(order > 0)
            exit !(n > m)
        }'
}

# --- fetching ------------------------------------------------------------------

# fetch URL FILE LIMIT: 0 done; 1 the server has no such file; 2 it cannot be had now; 3 it is too large. Why in $said.
fetch() {
    [ -n "$fetcher" ] || die 1 "neither curl nor GNU wget is installed: install one of them, or use --source DIRECTORY"
    attempt=1
    while :; do
        status=0
        try_to_fetch "$1" "$2" "$3" || status=$?
        # Cut off, stalled or busy: that may go away.
        if [ "$status" != 4 ] || [ "$attempt" -ge 3 ]; then break; fi
        attempt=$((attempt + 1))
        sleep 1
    done
    [ "$status" != 4 ] || status=2
    [ "$status" != 0 ] || [ "$(wc -c <"$2")" -le "$3" ] || status=3
    return "$status"
}

try_to_fetch() {
    case $1 in
        https:*) protocols='=https' ;;
        # Only where plain HTTP is accepted at all; redirects may go on to another port.
        *) protocols='=http,https' ;;
    esac
    # Whatever the server says of its length, no more than this is written to the disk.
    blocks=$(($3 / 512 + 8))
    result=0
    rm -f "$2"
    if [ "$fetcher" = curl ]; then
        answer=$(
            ulimit -f "$blocks"
            exec curl --proto "$protocols" --proto-redir "$protocols" --tlsv1.2 -fsSL --max-redirs 10 \
                --connect-timeout 20 --speed-limit 500 --speed-time 60 -o "$2" -w '%{http_code}' "$1" 2>"$work/said"
        ) || result=$?
        gives_up='6 7 35 47 51 58 60 77'
    else
        (
            ulimit -f "$blocks"
            exec wget -nv -S --tries=1 --timeout=60 --max-redirect=10 -O "$2" "$1" 2>"$work/said"
        ) || result=$?
        answer=$(sed -n 's/^ *HTTP\/[0-9.]* \([0-9]*\).*/\1/p' "$work/said" | tail -n 1)
        gives_up='5'
        # GNU Wget has one code for all failures of the network.
        [ "$result" != 4 ] || result=7 gives_up='7'
    fi
    said=$(tail -n 1 "$work/said" | cut -c1-300)
    [ "$result" != 0 ] || return 0
    # XFSZ: 128 + 25; curl: 23, cannot write.
    case $result in 153 | 23) return 3 ;; esac
    case $answer in
        408 | 429 | 5??) return 4 ;;
        4??) return 1 ;;
    esac
    for code in $gives_up; do [ "$result" != "$code" ] || return 2; done
    return 4
}

# The version that a JSON document has at a path, "version" or "info.version".
version_in() {
    found=$(awk -v path="$2" '
        BEGIN { RS = "\""; wanted = split(path, step, "."); depth = 0 }
        # Records are what lies between quotes: by turns outside of strings and inside.
        inside {
            text = text $0
            quoted = $0; sub(/^.*[^\\]/, "", quoted)
            if (length(quoted) % 2) { text = text "\""; next }
            if (colon && depth == wanted && !array[depth]) {
                for (i = 1; i <= wanted && key[i] == step[i]; i++) {}
                if (i > wanted) { print text; exit }
            }
            string = text; text = ""; inside = 0
            next
        }
        {
            rest = $0; gsub(/[ \t\r\n]/, "", rest)
            if (rest ~ /^:/) key[depth] = string
            for (i = 1; i <= length(rest); i++) {
                sign = substr(rest, i, 1)
                if (sign == "{" || sign == "[") { depth++; key[depth] = ""; array[depth] = sign == "[" }
                if (sign == "}" || sign == "]") depth--
            }
            colon = rest ~ /:$/
            inside = 1
        }' "$1" | head -n 1)
    found=${found#v}
    found=${found%%+*}
    if is_version "$found"; then printf '%s\n' "$found"; fi
}

# Contract section 4, "Where the API reports its version, first answer wins".
ask_platform() {
    reported='' unreachable=''
    for place in /api/v1/version:version /health:version /api/openapi.json:info.version; do
        address=$platform_url${place%:*}
        limit=65536
        [ "$place" != /api/openapi.json:info.version ] || limit=8388608
        status=0
        fetch "$address" "$work/answer" "$limit" || status=$?
        case $status in
            0) reported=$(version_in "$work/answer" "${place#*:}") ;;
            2) unreachable="$address: $said" ;;
        esac
        # What today's servers send whatever they are.
        [ "$place $reported" != '/api/openapi.json:info.version 0.1.0' ] || reported=''
        [ -z "$reported" ] || return 0
        # Nobody listens: the other places are on the same host.
        [ "$status" != 2 ] || [ "${answer:-000}" != 000 ] || return 0
    done
}

choose_version() {
    reported='' unreachable=''
    [ -z "$platform_url" ] || ask_platform
    if [ -n "$reported" ]; then
        if [ -n "$version" ] && newer "$version" "$reported"; then
            die 20 "$version is newer than the platform, which runs $reported. The order is: API, then agents, then CLI. Upgrade the platform first, or install $reported"
        fi
        version=${version:-$reported}
    elif [ -n "$unreachable" ] && { [ -z "$version" ] || [ -z "$no_start" ]; }; then
        die 69 "the platform cannot be asked for its version ($unreachable): check --platform-url and the network"
    elif [ -z "$version" ] && [ -z "$platform_url" ]; then
        die 2 "which platform? Name it with --platform-url, or a version with --version"
    elif [ -z "$version" ]; then
        die 20 "$platform_url does not report its version: name one with --version, not newer than the platform"
    elif [ -n "$platform_url" ]; then
        warn "whether $version is newer than the platform is not known: ${unreachable:-$platform_url does not report its version}"
    fi
    tag=v$version
}

# --- the release ---------------------------------------------------------------

# release_file NAME LIMIT: into $work; returns as `fetch`.
release_file() {
    case $source in
        /*)
            said="$source/$tag/$1 does not exist"
            [ -f "$source/$tag/$1" ] || return 1
            [ "$(wc -c <"$source/$tag/$1")" -le "$2" ] || return 3
            cat "$source/$tag/$1" >"$work/$1" || die 74 "$source/$tag/$1 cannot be read"
            ;;
        *) fetch "$source/releases/download/$tag/$1" "$work/$1" "$2" ;;
    esac
}

# The same for a file that the release must have.
need_file() {
    status=0
    release_file "$1" "$2" || status=$?
    case $status in
        0) ;;
        1) die 69 "$source has no $1 of release $tag: is $version released there? --version and --source name others" ;;
        3) die 21 "$1 of $tag is larger than the $2 bytes that it may have" ;;
        *) die 69 "$1 of $tag cannot be fetched from $source: $said" ;;
    esac
}

fetch_release() {
    need_file checksums.txt "$checksums_limit"
    check_signatures
    check_list
    need_listed "bamf-agent-linux-$arch" bamf-agent.service
    want=bamf-agent.service
    # Parts of later releases; the first is built in here as well.
    for name in bamf-agent.sysusers bamf-agent-update.service bamf-agent-update.timer bamf-agent-update.path; do
        [ -z "$(listed_hash "$name")" ] || want="$want $name"
    done
    for name in $want; do
        need_file "$name" "$checksums_limit"
        check_hash "$name" "$work/$name"
    done
}

need_listed() {
    for name in "$@"; do
        [ -n "$(listed_hash "$name")" ] || die 69 "release $tag has no $name"
    done
}

listed_hash() { awk -v name="$1" 'NR > 1 && $2 == name { print $1 }' "$work/checksums.txt"; }

check_hash() {
    found=$(sha256sum <"$2" | cut -c1-64)
    [ "$found" = "$(listed_hash "$1")" ] ||
        die 21 "$1 of $tag has SHA-256 $found, but $(listed_hash "$1") was signed: it was cut off or changed on the way; do not install it"
}

# --- trust ---------------------------------------------------------------------

# As the updater: a signature by a trusted key that does not verify is refused, and one trusted key has to have signed.
check_signatures() {
    signed_by=''
    signature_file=checksums.txt.minisig
    status=0
    release_file "$signature_file" "$signature_limit" || status=$?
    case $status in
        0) check_signature ;;
        1) ;;
        3) die 21 "$signature_file is larger than a signature" ;;
        *) die 69 "$signature_file of $tag cannot be fetched from $source: $said" ;;
    esac
    for key in $(printf %s "$trusted_key" | tr ',' ' '); do
        [ -z "$signed_by" ] || break
        signature_file=checksums.txt.$(key_name "$key").minisig
        status=0
        release_file "$signature_file" "$signature_limit" || status=$?
        [ "$status" != 0 ] || check_signature
    done
    [ -n "$signed_by" ] ||
        die 21 "release $tag of $source is not signed by a key that is trusted here ($(trusted_names)): do not install it"
}

trusted_names() {
    for key in $(printf %s "$trusted_key" | tr ',' ' '); do key_name "$key"; done | tr '\n' ' ' | sed 's/ $//'
}

# Eight bytes by which minisign names a key, in hexadecimal: the third to tenth of key and signature.
key_id() { printf %s "$1" | base64 -d 2>/dev/null | od -An -v -tx1 | tr -d ' \n' | cut -c5-20; }

# The same as minisign prints it: the number that the bytes are, little-endian.
key_name() {
    key_id "$1" | sed 's/\(..\)\(..\)\(..\)\(..\)\(..\)\(..\)\(..\)\(..\)/\8\7\6\5\4\3\2\1/' | tr a-f A-F
}

# Of $signature_file. By a key that is not trusted, it says nothing; by one that is, it is right or the end.
check_signature() {
    file=$work/$signature_file
    [ "$(tr -d '\n\040-\176\200-\377' <"$file" | wc -c)" -eq 0 ] || no_signature "it is not text"
    [ "$(awk 'END { print NR }' "$file")" = 4 ] || no_signature "it does not have the four lines of one"
    case $(sed -n 1p "$file") in 'untrusted comment: '*) ;; *) no_signature "line 1 is not an untrusted comment" ;; esac
    case $(sed -n 3p "$file") in 'trusted comment: '*) ;; *) no_signature "line 3 is not a trusted comment" ;; esac
    signature=$(sed -n 2p "$file") global_signature=$(sed -n 4p "$file")
    is_base64 "$signature" 100 74 || no_signature "line 2 is not a signature"
    is_base64 "$global_signature" 88 64 || no_signature "line 4 is not a signature"
    case $signature in
        RU[Q-T]*) ;;
        RW[Q-T]*) die 21 "$signature_file is in minisign's legacy form, which is not accepted" ;;
        *) no_signature "it is not an Ed25519 signature" ;;
    esac
    for key in $(printf %s "$trusted_key" | tr ',' ' '); do
        [ "$(key_id "$key")" = "$(key_id "$signature")" ] || continue
        "verify_with_$verifier" "$key" "$file" ||
            die 21 "checksums.txt of $tag, or its trusted comment, is not what key $(key_name "$key") signed: do not install it"
        check_comment "$(sed -n '3s/^trusted comment: //p' "$file")"
        signed_by=$(key_name "$key")
        return 0
    done
}

no_signature() {
    die 21 "$signature_file of $tag is not a minisign signature: $1 (did a proxy or a login page answer?)"
}

# is_base64 TEXT CHARACTERS BYTES
is_base64() {
    [ "${#1}" -eq "$2" ] && [ "$(printf %s "$1" | tr -d 'A-Za-z0-9+/=' | wc -c)" -eq 0 ] &&
        [ "$(printf %s "$1" | base64 -d 2>/dev/null | wc -c)" -eq "$3" ]
}

verify_with_minisign() {
    minisign -VQ -P "$1" -m "$work/checksums.txt" -x "$2" >/dev/null 2>"$work/said"
}

# Ed25519 over the BLAKE2b-512 digest of the file, and over signature and trusted comment.
verify_with_openssl() {
    {
        # The head of a SubjectPublicKeyInfo for Ed25519 (RFC 8410).
        printf '\060\052\060\005\006\003\053\145\160\003\041\000'
        printf %s "$1" | base64 -d | tail -c 32
    } >"$work/key.der"
    openssl pkey -pubin -inform DER -in "$work/key.der" -out "$work/key.pem" 2>"$work/said" &&
        openssl dgst -blake2b512 -binary -out "$work/digest" "$work/checksums.txt" 2>"$work/said" || return 1
    printf %s "$signature" | base64 -d | tail -c 64 >"$work/signature"
    printf %s "$global_signature" | base64 -d >"$work/global"
    {
        cat "$work/signature"
        sed -n '3s/^trusted comment: //p' "$2" | tr -d '\n'
    } >"$work/commented"
    openssl_verifies digest signature && openssl_verifies commented global
}

openssl_verifies() {
    openssl pkeyutl -verify -pubin -inkey "$work/key.pem" -rawin -in "$work/$1" -sigfile "$work/$2" >"$work/said" 2>&1
}

# The signed comment names the tag, once: an old release must not pass as another.
check_comment() {
    tags=0 signed_tag=nothing
    for word in $1; do
        case $word in
            tag:*) tags=$((tags + 1)) signed_tag=${word#tag:} ;;
        esac
    done
    [ "$tags" -le 1 ] || signed_tag='several tags'
    [ "$signed_tag" = "$tag" ] ||
        die 21 "asked for $tag, but the signature's trusted comment says $signed_tag: an old release may be passed off as another; do not install it"
}

# What the updater's parser demands of checksums.txt: the tag, then what `sha256sum` writes, plain names, none twice.
check_list() {
    list=$work/checksums.txt
    first=$(sed -n 1p "$list")
    [ "$first" = "# tag: $tag" ] ||
        die 21 "asked for $tag, but checksums.txt begins with '$first': an old release may be passed off as another; do not install it"
    [ "$(wc -l <"$list")" -le 1000 ] || die 21 "checksums.txt of $tag is longer than any release's"
    sed 1d "$list" >"$work/lines"
    # Printable ASCII without space, slash and backslash.
    plain='[]-~!-.0-[]'
    wrong=$(grep -c -v "^[0-9a-f]\{64\}  $plain\{1,255\}\$" "$work/lines" || :)
    cut -c67- "$work/lines" >"$work/names"
    if [ "$wrong" != 0 ] || grep -q -e '\.\.' -e '^\.$' "$work/names"; then
        die 21 "checksums.txt of $tag has a line that is not a SHA-256 and a plain file name"
    fi
    [ -z "$(sort "$work/names" | uniq -d)" ] || die 21 "checksums.txt of $tag lists a name twice"
}

# --- the binary ----------------------------------------------------------------

# Downloads, checks and tries the binary, beside the place where it will lie.
stage_binary() {
    name=bamf-agent-linux-$arch
    need_file "$name" "$asset_limit"
    if [ ! -d "$prefix/bin" ]; then
        made_directory=1
        mkdir -p "$prefix/bin" || die 74 "$prefix/bin cannot be made"
    fi
    staged=$prefix/bin/.bamf-agent.install.$$
    (umask 077 && cat "$work/$name" >"$staged") || die 74 "$prefix/bin cannot be written"
    check_hash "$name" "$staged"
    case $(od -An -v -tx1 -N 20 "$staged" | tr -d ' \n') in
        7f454c4602*"$elf_machine") ;;
        *) die 21 "$name of $tag is not a program for $arch" ;;
    esac
    chmod 0755 "$staged"
    # Labelled like the place where it will lie.
    relabel "$staged"
    says=$(bounded "$staged" --version 2>&1 </dev/null | head -n 1 || :)
    case $says in
        "bamf-agent $version (linux/$arch"*) ;;
        *) die 21 "$name of $tag says that it is: $says" ;;
    esac
    # A file that the Go agent lived with is not always one that this agent accepts, and a service that does not start
    # again is worse than one that is not upgraded.
    if [ -f "$config" ]; then
        run_agent "$staged" --config "$config" config check >"$work/said" 2>&1 ||
            die 78 "the configuration is not valid for this agent, nothing was changed: $(cat "$work/said")"
    fi
}

relabel() { ! command -v restorecon >/dev/null || restorecon "$1" 2>/dev/null || :; }

# To the disk, as far as the tools can.
flush() { sync -f "$1" 2>/dev/null || sync; }

install_binary() {
    if [ -n "$replaces" ] && [ "$replaces" = "$bin" ] && [ ! -e "$bin$kept" ]; then
        ln "$bin" "$bin$kept" || cp -p "$bin" "$bin$kept"
        did "kept the Go agent as $bin$kept"
    elif [ -e "$bin" ] && [ -z "$replaces" ]; then
        did "replaced $bin, which did not run"
    fi
    flush "$staged"
    mv -f "$staged" "$bin" || die 74 "$bin cannot be written"
    staged=''
    flush "$prefix/bin"
    did "installed $bin $version, signed by key $signed_by (checked with $verifier)"
}

# --- what belongs to it --------------------------------------------------------

# What was done, for the end.
did() { printf '  %s\n' "$*" >>"$work/done"; }

# put FILE TARGET: in one step, if it differs; fails if there was nothing to do.
put() {
    ! cmp -s "$1" "$2" || return 1
    mkdir -p "${2%/*}"
    writing=$2.install.$$
    {
        cat "$1" >"$writing" && chmod 0644 "$writing" && flush "$writing" && mv -f "$writing" "$2"
    } || die 74 "$2 cannot be written"
    relabel "$2"
}

make_user() {
    if [ ! -f "$work/bamf-agent.sysusers" ]; then
        # The same as systemd/bamf-agent.sysusers.
        cat >"$work/bamf-agent.sysusers" <<'SYSUSERS'
# sysusers.d(5): the user that the agent runs as. The Go agent's packages make the same one, and an existing one is kept.
# No shell, no password: sysusers locks the account.
u bamf - "BAMF agent" /var/lib/bamf-agent
SYSUSERS
    fi
    # Kept on the machine too: it tells who the user is, and `uninstall` that it is ours.
    ! put "$work/bamf-agent.sysusers" "$sysusers" || did "wrote $sysusers"
    ! id -u bamf >/dev/null 2>&1 || return 0
    if command -v systemd-sysusers >/dev/null; then
        systemd-sysusers "$sysusers" >"$work/said" 2>&1 ||
            die 1 "the user bamf cannot be made (systemd-sysusers $sysusers): $(cat "$work/said")"
    else
        useradd --system --user-group --home-dir /var/lib/bamf-agent --no-create-home \
            --shell /usr/sbin/nologin --comment 'BAMF agent' bamf || die 1 "the user bamf cannot be made (useradd)"
    fi
    did "made the user bamf"
}

write_config() {
    if [ -e "$config" ]; then
        mend_config
        [ -z "$given_source" ] || remember update.source BAMF_UPDATE_SOURCE "$source"
        [ -z "$given_key" ] || remember update.trusted_keys BAMF_UPDATE_TRUSTED_KEYS "$given_key"
        [ -z "$given_platform_url" ] || [ "$platform_url" = "$(trimmed "$(configured platform_url)")" ] ||
            warn "$config is kept, and its platform_url is '$(configured platform_url)'"
        return 0
    fi
    {
        say "# Configuration of the BAMF agent; every key: docs/configuration.md. After a change: \`bamf-agent config check\`,"
        say "# then \`systemctl restart bamf-agent\`, which keeps open sessions."
        [ -n "$given_platform_url" ] || say '#platform_url: https://bamf.example.com'
        [ -z "$given_platform_url" ] || say "platform_url: $platform_url"
        [ -z "$insecure" ] || say 'allow_insecure_http: true'
        cat <<'CONFIG'
# The name that the platform shows. Without it: the host name, made valid.
#agent_name: edge-1
# What people reach through this agent.
#resources:
#  - name: wiki
#    type: http
#    hostname: wiki.internal
CONFIG
        if [ -n "$given_source$given_key" ]; then
            say '# Later updates come from the same place, under the same trust.'
            say 'update:'
            [ -z "$given_source" ] || say "  source: '$(printf %s "$source" | sed "s/'/''/g")'"
            [ -z "$given_key" ] || say "  trusted_keys: [$given_key]"
        fi
    } >"$work/agent.yaml"
    mkdir -p /etc/bamf
    writing=$config.install.$$
    (umask 077 && cat "$work/agent.yaml" >"$writing") || die 74 "$config cannot be written"
    # root's: it decides which releases root installs.
    own_config "$writing"
    flush "$writing"
    # `ln` and not `mv`: one that appeared meanwhile is kept.
    ln "$writing" "$config" 2>/dev/null || [ -e "$config" ] || die 74 "$config cannot be written"
    rm -f "$writing"
    relabel "$config"
    did "wrote $config"
}

own_config() {
    if id -g bamf >/dev/null 2>&1; then chown root:bamf "$1"; else chown root "$1"; fi
    chmod 0640 "$1"
}

# The content stays. Root lives by this file, so nobody else may write it, and the service has to read it.
mend_config() {
    about=$(stat -Lc '%U:%G %A' "$config")
    case $about in
        root:*' '?????-??-?)
            case $about in root:bamf' '????r* | *' '???????r*) return 0 ;; esac
            ;;
    esac
    [ -n "$systemd" ] || return 0
    config_was=${about%% *}
    own_config "$config"
    did "gave $config to root:bamf, mode 0640 (it was $about)"
}

# remember KEY VARIABLE VALUE: what a kept configuration does not say, the service's environment does.
remember() {
    [ "$(configured "$1")" != "$3" ] && [ "$(in_env_file "$2")" != "$3" ] || return 0
    if [ -n "$(configured "$1")" ]; then
        warn "$config is kept, and its $1 is '$(configured "$1")': later updates go by that"
        return 0
    fi
    set_variable "$2" "$3"
    did "wrote $2 to $env_file"
}

# set_variable NAME VALUE; without a value it is taken out. One rename, readable by root alone.
set_variable() {
    mkdir -p /etc/bamf
    writing=$env_file.install.$$
    (
        umask 077
        {
            [ ! -f "$env_file" ] || grep -v "^$1=" "$env_file" || :
            [ -z "${2:-}" ] || printf '%s=%s\n' "$1" "$2"
        } >"$writing"
    )
    if [ -s "$writing" ]; then
        flush "$writing"
        mv -f "$writing" "$env_file"
        relabel "$env_file"
    else
        rm -f "$writing" "$env_file"
    fi
}

keep_go_settings() {
    for word in $go_settings; do
        [ -z "$(in_env_file "${word%%=*}")" ] || continue
        set_variable "${word%%=*}" "${word#*=}"
        did "kept ${word%%=*} of the Go agent's unit in $env_file"
    done
}

# --- the service ---------------------------------------------------------------

# Fails if the unit was so before.
install_units() {
    changed=''
    for name in bamf-agent.service bamf-agent-update.service bamf-agent-update.timer bamf-agent-update.path; do
        [ -f "$work/$name" ] || continue
        sed "/^#/!s|/usr/local/bin/|$prefix/bin/|g" "$work/$name" >"$work/rewritten"
        if [ "$name" = "$unit" ] && [ -n "$replaces" ] && [ -e "$units/$name" ] && [ ! -e "$units/$name$kept" ]; then
            cp -p "$units/$name" "$units/$name$kept"
            did "kept the Go agent's unit as $units/$name$kept"
        fi
        [ ! -f "$units/$name" ] || cp "$units/$name" "$work/$name.before"
        ! put "$work/rewritten" "$units/$name" || {
            changed=1
            did "wrote $units/$name"
        }
    done
    [ -n "$changed" ] || return 1
    systemctl daemon-reload
}

update_installed() {
    set -- update --version "$version" --source "$source"
    case $version in *-*) set -- "$@" --allow-prerelease ;; esac
    [ -n "$reported" ] || set -- "$@" --assume-api-version "$version"
    [ "$installed" != "$version" ] || set -- "$@" --force
    [ -z "$no_start" ] || set -- "$@" --no-restart
    status=0
    run_agent "$bin" "$@" || status=$?
    case $status in
        0) ;;
        23) die 23 "$version did not become healthy here, and $installed runs again: \`journalctl -u $unit\` says why" ;;
        25) die 25 "$installed is kept; see above. To step down: \`bamf-agent update --version $version --allow-downgrade\`" ;;
        *) die "$status" "$bin could not update itself to $version; see above" ;;
    esac
    now=$(version_of "$bin")
    [ "$now" = "$version" ] || die 1 "the agent is $now after the update, not $version: run this again"
    did "updated $bin from $installed to $version"
}

is_joined() { [ -s "$data_dir/agent.crt" ] && [ -s "$data_dir/agent.key" ]; }

join() {
    [ -n "$token" ] || return 0
    if is_joined; then
        say "This machine has joined before: the token is not used."
        return 0
    fi
    if [ -n "$no_start" ]; then
        # For the first start; the next run of this script takes it out again.
        set_variable BAMF_JOIN_TOKEN "$token"
        did "wrote the token to $env_file, which only root reads, for the first start"
        return 0
    fi
    status=0
    # Through a pipe: on a command line or in a file somebody could see it.
    printf '%s\n' "$token" | run_agent "$bin" --config "$config" join --token-file - || status=$?
    [ "$status" = 0 ] || die "$status" "the agent is installed but did not join; see above. Then run this again, with a token"
}

start() {
    start_failed=''
    if ! systemctl --quiet is-enabled "$unit" >/dev/null 2>&1; then
        systemctl --quiet enable "$unit" || systemctl --quiet reenable "$unit"
        did "enabled $unit"
    fi
    [ -z "$no_start" ] || return 0
    [ -n "$restart" ] || ! systemctl --quiet is-active "$unit" || return 0
    systemctl reset-failed "$unit" 2>/dev/null || :
    systemctl restart "$unit" || start_failed=1
    did "started $unit"
}

runs_ours() {
    [ "$(systemctl show --property=ExecStart --value "$unit" | sed -n '1s/^{ path=\([^ ;]*\) ;.*/\1/p')" = "$bin" ]
}

wait_until_connected() {
    connected='' deadline=$(($(date +%s) + connect_limit))
    while [ -z "$start_failed" ]; do
        answer=$(run_agent "$bin" --config "$config" status --json 2>/dev/null || :)
        case $answer in
            *'"pid":null'*) ;;
            *'"connected":true'*) connected=1 && return 0 ;;
        esac
        case $(state) in failed | inactive) break ;; esac
        [ "$(date +%s)" -lt "$deadline" ] || break
        sleep 0.2 2>/dev/null || sleep 1
    done
    not_connected >&2
    exit "$die_code"
}

state() { systemctl show --property=ActiveState --value "$unit"; }

not_connected() {
    die_code=69
    [ -z "$start_failed" ] || die_code=1
    case $(state) in failed | inactive) die_code=1 ;; esac
    [ "$(systemctl show --property=ExecMainStatus --value "$unit")" != 78 ] || die_code=78
    cat "$work/done"
    journalctl --no-pager --output=cat --lines=6 --unit="$unit" 2>/dev/null | printable || :
    if [ "$die_code" != 69 ] && [ -z "$replaces" ] && [ -f "$work/$unit.before" ]; then
        # What ran with the unit of before runs with it again, sessions and all.
        if put "$work/$unit.before" "$units/$unit"; then systemctl daemon-reload; fi
        systemctl restart "$unit" || :
        say "install.sh: the service did not start with the unit of $tag; the unit of before is back, and the service is $(state)"
        return 0
    fi
    say "install.sh: the agent is installed, but it is not connected to ${platform_url:-the platform}."
    say "\`journalctl -u $unit\` says why, \`bamf-agent status\` whether it is by now."
    [ -z "$replaces" ] || go_back
}

# --- in this order -------------------------------------------------------------

confirm() {
    [ -z "$yes" ] && [ -t 1 ] && (: </dev/tty) 2>/dev/null || return 0
    say "This installs bamf-agent $version from $source as $bin${replaces:+, in the place of the Go agent $replaces}."
    # The script itself may be standard input.
    printf 'Go on? [Y/n] ' && read -r reply </dev/tty || reply=n
    case $reply in '' | [Yy]*) ;; *) die 1 "nothing was changed" ;; esac
}

# One at a time, and not beside an update: the updater's own lock.
lock() {
    command -v flock >/dev/null || return 0
    [ -d "$updater" ] || mkdir -m 0700 "$updater" || die 74 "$updater cannot be made"
    exec 9<>"$updater/lock"
    flock -n 9 || die 26 "an update or another install.sh is running; wait for it"
}

unlock() { exec 9>&-; }

needs_binary() {
    [ "$installed" != "$version" ] ||
        [ "$(sha256sum <"$bin" | cut -c1-64)" != "$(listed_hash "bamf-agent-linux-$arch")" ]
}

install_without_systemd() {
    stage_binary
    confirm
    install_binary
    [ -z "$given_platform_url" ] || write_config
    cat "$work/done"
    say "systemd does not run here. What is missing: a user for the agent, a service, and its start."
    say "Next: let your service manager run \`$bin run --config $config\` as a user of its own."
}

install_with_systemd() {
    stale='' restart=''
    ! needs_binary || stale=1
    # An agent of ours replaces itself: it tries the new binary, watches it, and goes back.
    [ -n "$installed" ] || stage_binary
    confirm
    lock
    make_user
    keep_go_settings
    write_config
    if [ -z "$installed" ]; then
        install_binary
        restart=1
    elif [ -n "$stale" ]; then
        # It goes by its unit, whatever that is.
        [ -n "$program" ] || ! install_units || restart=1
        unlock
        update_installed
        lock
    fi
    ! install_units || restart=1
    if [ -n "$program" ] && [ "$program" != "$bin" ] && [ -z "$replaces" ]; then did "$program is not used any more"; fi
    runs_ours || die 1 "a drop-in of $unit starts something else than $bin: look at \`systemctl cat $unit\`, then run this again"
    join
    if [ -n "$no_start" ] || can_start; then
        start
        [ -n "$no_start" ] || wait_until_connected
        [ -z "$(in_env_file BAMF_JOIN_TOKEN)" ] || ! is_joined || forget_token
    fi
    finish
}

# With an identity, or with a token to get one.
can_start() {
    ! is_joined || return 0
    [ -n "$platform_url" ] || return 1
    ! run_agent "$bin" --config "$config" selftest >"$work/said" 2>&1 || return 0
    grep -q 'holds no certificate' "$work/said" || die 78 "the agent is installed, but cannot start: $(cat "$work/said")"
    return 1
}

forget_token() {
    set_variable BAMF_JOIN_TOKEN
    did "took the join token out of $env_file: it is not needed any more"
}

finish() {
    [ -s "$work/done" ] || did "nothing was to be done"
    cat "$work/done"
    if [ -n "$replaces" ]; then go_back; fi
    if [ -n "${connected:-}" ]; then
        say "bamf-agent $version runs and is connected to ${platform_url:-the platform}."
        say "Next: list what people may reach in $config (resources:), then \`sudo systemctl restart bamf-agent\`."
    elif [ -n "$no_start" ]; then
        say "bamf-agent $version is installed; the service was left as it is (--no-start)."
        say "Next: \`sudo systemctl start bamf-agent\`."
    else
        say "bamf-agent $version is installed, but it has neither a certificate nor a join token."
        [ -n "$(configured platform_url)$(in_env_file BAMF_PLATFORM_URL)" ] || say "Next: set platform_url in $config."
        say "Next: \`sudo bamf-agent join --token-file FILE\`, then \`sudo systemctl enable --now bamf-agent\`."
    fi
    say "Its state: \`sudo bamf-agent status\`. To remove it: \`sudo bamf-agent uninstall\`."
}

go_back() {
    say "The Go agent ($replaces) is replaced; its identity and configuration are in use. The way back:"
    package=$(package_of "$replaces")
    [ -z "$config_was" ] || say "  sudo chown $config_was $config"
    if [ "$replaces" = "$bin" ] || [ -e "$units/$unit$kept" ]; then
        say "  sudo systemctl stop bamf-agent"
        [ ! -e "$bin$kept" ] || say "  sudo mv $bin$kept $bin"
        if [ -e "$units/$unit$kept" ]; then say "  sudo mv $units/$unit$kept $units/$unit"; else say "  sudo rm $units/$unit"; fi
        say "  sudo systemctl daemon-reload && sudo systemctl start bamf-agent"
    else
        say "  sudo rm $units/$unit && sudo systemctl daemon-reload && sudo systemctl restart bamf-agent"
    fi
    [ -z "$package" ] ||
        say "The package $package is still installed. Removing it (not purging, which deletes the configuration) stops the service: run this again afterwards."
}

read_command_line "$@"
look_at_machine
look_at_installation
settle
choose_version
fetch_release
if [ -n "$systemd" ]; then install_with_systemd; else install_without_systemd; fi
}
{ bamf_agent_install "$@"; }
