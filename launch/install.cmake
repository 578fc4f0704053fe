# cmake --install: the binary, the library for embedders (weft.h and what it includes, shared and static library,
# pkg-config file), the CUDA module and the demo model.
include(GNUInstallDirs)

install(TARGETS weft_static weft_shared LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR} ARCHIVE DESTINATION
                                                ${CMAKE_INSTALL_LIBDIR})
if(TARGET weft)
  install(TARGETS weft RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
endif()
if(WEFT_CUDA_MODULE)
  install(PROGRAMS ${WEFT_CUDA_MODULE} DESTINATION ${CMAKE_INSTALL_LIBDIR}/weft)
endif()
install(FILES include/weft/weft.h include/weft/status.h include/weft/log.h DESTINATION
                                                                           ${CMAKE_INSTALL_INCLUDEDIR}/weft)
install(
  DIRECTORY launch/demo-model/
  DESTINATION ${CMAKE_INSTALL_DATADIR}/weft/demo-model
  FILES_MATCHING
  PATTERN "*.json"
  PATTERN "*.safetensors")

# What a program linked with the static library needs besides it.
set(weft_requires_private jansson libpcre2-8 libutf8proc libprotobuf-c libcrypto)
if(TARGET PkgConfig::UCX)
  list(APPEND weft_requires_private ucx)
endif()
if(WEFT_HAS_MPI)
  list(APPEND weft_requires_private ompi-c)
endif()
list(JOIN weft_requires_private ", " WEFT_REQUIRES_PRIVATE)
configure_file(launch/weft.pc.in weft.pc @ONLY)
install(FILES ${CMAKE_BINARY_DIR}/weft.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
