# cmake -DFROM=<source>/fastreg -DTO=<build>/python/fastreg -DCORE=<the module> [-DCUDA=<its library>] -P stage_package.cmake
#
# Lays links to the sources of the package, and to the module that was built, in one directory. Links of files that are
# gone go.
file(REMOVE_RECURSE "${TO}")
file(GLOB_RECURSE sources RELATIVE "${FROM}" "${FROM}/*.py" "${FROM}/*.pyi" "${FROM}/py.typed")
foreach(source IN LISTS sources)
  get_filename_component(folder "${TO}/${source}" DIRECTORY)
  file(MAKE_DIRECTORY "${folder}")
  file(CREATE_LINK "${FROM}/${source}" "${TO}/${source}" SYMBOLIC)
endforeach()
get_filename_component(core "${CORE}" NAME)
file(CREATE_LINK "${CORE}" "${TO}/${core}" SYMBOLIC)
if(CUDA)
  get_filename_component(cuda "${CUDA}" NAME)
  file(CREATE_LINK "${CUDA}" "${TO}/${cuda}" SYMBOLIC)
endif()
