# What `cmake --install` puts where: the library, its public headers, the player, and what find_package and pkg-config read.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

install(TARGETS dexport EXPORT dexport_targets LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR} ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(DIRECTORY include/dexport DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
if(DEXPORT_PLAYER)
  file(RELATIVE_PATH _libraries "/prefix/${CMAKE_INSTALL_BINDIR}" "/prefix/${CMAKE_INSTALL_LIBDIR}")
  set_target_properties(dexport-run PROPERTIES INSTALL_RPATH "$ORIGIN/${_libraries}")
  install(TARGETS dexport-run RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
endif()

# find_package(dexport CONFIG REQUIRED) gives dexport::dexport.
set(_config_folder "${CMAKE_INSTALL_LIBDIR}/cmake/dexport")
install(EXPORT dexport_targets NAMESPACE dexport:: FILE dexportTargets.cmake DESTINATION "${_config_folder}")
configure_package_config_file(cmake/dexportConfig.cmake.in "${CMAKE_CURRENT_BINARY_DIR}/dexportConfig.cmake" INSTALL_DESTINATION "${_config_folder}")
write_basic_package_version_file("${CMAKE_CURRENT_BINARY_DIR}/dexportConfigVersion.cmake" COMPATIBILITY SameMinorVersion)
install(
  FILES "${CMAKE_CURRENT_BINARY_DIR}/dexportConfig.cmake" "${CMAKE_CURRENT_BINARY_DIR}/dexportConfigVersion.cmake"
  DESTINATION "${_config_folder}"
)

# pkg-config --cflags --libs dexport; with --static also what a static library needs.
# OpenVINO by its path: in the wheel it has no name that -lopenvino would find.
get_target_property(_openvino openvino::runtime LOCATION)
set(_tensorrt "")
if(TARGET tensorrt::runtime)
  get_target_property(_tensorrt tensorrt::runtime LOCATION)
endif()
file(RELATIVE_PATH _pc_prefix "/prefix/${CMAKE_INSTALL_LIBDIR}/pkgconfig" "/prefix")
configure_file(cmake/dexport.pc.in dexport.pc @ONLY)
install(FILES "${CMAKE_CURRENT_BINARY_DIR}/dexport.pc" DESTINATION "${CMAKE_INSTALL_LIBDIR}/pkgconfig")
