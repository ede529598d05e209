# The JSON Schemas of the Python runtime become raw string literals: manifest_schema.inc, program_schema.inc.
set(_schemas "${CMAKE_CURRENT_SOURCE_DIR}/../schemas")
set(_embedded "")
foreach(_name manifest program)
  set(_source "${_schemas}/${_name}.schema.json")
  set(_target "${CMAKE_CURRENT_BINARY_DIR}/schemas/${_name}_schema.inc")
  # Literals longer than 64 KiB are not portable; both are far below.
  add_custom_command(
    OUTPUT "${_target}"
    COMMAND "${CMAKE_COMMAND}" "-DSOURCE=${_source}" "-DTARGET=${_target}" -P "${CMAKE_CURRENT_SOURCE_DIR}/cmake/embed.cmake"
    DEPENDS "${_source}" "${CMAKE_CURRENT_SOURCE_DIR}/cmake/embed.cmake"
    VERBATIM
  )
  list(APPEND _embedded "${_target}")
endforeach()
add_custom_target(dexport_schemas DEPENDS ${_embedded})
