# Writes the text of SOURCE to TARGET as one raw string literal, to be used by #include.
file(READ "${SOURCE}" text)
file(WRITE "${TARGET}" "R\"schema(${text})schema\"\n")
