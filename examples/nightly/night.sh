#!/usr/bin/env bash
# One night: asks of the images of a lake table what was not asked yet, brings the answers into another table
# beside it, and takes out those of images that are gone.
#
#   night.sh IMAGES OUT ANSWERS [FLAG…]
#
#   IMAGES   Delta or Lance table (folder or URI), or iceberg:CATALOG.NAMESPACE.TABLE, with a column `key`
#   OUT      folder or URI that this job works in, the same every night
#   ANSWERS  delta:URI or iceberg:CATALOG.NAMESPACE.TABLE; made if it is not there
#   FLAG     any of `llava-batch caption`: --model, --prompt …
#
# A night that is killed costs nothing but its last minute: the next one goes on. Exit status as the README's
# table has it; with 2 nothing was done (a mistyped name, or more than a tenth of the answers would be asked
# again: see --on-change).
set -euo pipefail

images=${1:?the table with the images} out=${2:?the folder to work in} answers=${3:?the table for the answers}
shift 3

llava-batch caption --input "$images" --key-column key --output "$out" --publish "$answers" "$@"
llava-batch forget "$out" --input "$images" --publish "$answers" --delete
