// Package initrd builds the initial RAM file system of a guest: an uncompressed
// cpio archive in the "newc" format, as the kernel's
// Documentation/driver-api/early-userspace/buffer-format.rst describes it.
//
//	Builder ──AddFile, AddELF, AddTree, ...──▶ tree of guest paths
//	        ──Build──▶ Image{Size, Parts} ──Load──▶ guest RAM
//	                                      └─WriteTo─▶ a file
//
// The bodies of host files never pass through this process's own memory:
// a Part names the file, and Load has it read straight to where the guest's
// kernel will look for it. The archive is the same for the same input: sorted,
// owned by root, all times zero unless asked otherwise.
//
// The package runs nothing and needs no privileges: device nodes are entries
// in the archive. Of the guest it knows only paths.
package initrd
