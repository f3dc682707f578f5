# Ends a library with its size and SHA-256, which kernels/extension.py checks before it loads one: a library that was cut
# short would end the process. Loaders do not look beyond what a library's own tables name.
file(SIZE "${LIBRARY}" size)
file(SHA256 "${LIBRARY}" hash)
file(APPEND "${LIBRARY}" "jepa_fast ${hash} ${size}\n")
