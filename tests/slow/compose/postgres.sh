# What the image of PostgreSQL does, with Debian's: a server whose user postgres has POSTGRES_PASSWORD, and the data in its volume.
set -eu
programs=$(dirname "$(ls /usr/lib/postgresql/*/bin/initdb | tail -n 1)")
data=/var/lib/postgresql/data
as_postgres() { setpriv --reuid=postgres --regid=postgres --clear-groups -- "$@"; }

if [ ! -e $data/PG_VERSION ]; then
  chown postgres $data
  chmod 700 $data
  (umask 077 && printf %s "$POSTGRES_PASSWORD" >/tmp/password && chown postgres /tmp/password)
  as_postgres "$programs/initdb" --pgdata $data --username postgres --auth scram-sha-256 --pwfile /tmp/password --no-sync
  echo "host all all all scram-sha-256" >>$data/pg_hba.conf
fi
exec setpriv --reuid=postgres --regid=postgres --clear-groups -- \
  "$programs/postgres" -D $data -c listen_addresses='*' -c fsync=off -c unix_socket_directories=/tmp
