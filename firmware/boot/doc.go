// Package boot puts a kernel into guest memory and says in which state its
// first processor starts.
//
// It knows four ways in: the 64-bit entry of an uncompressed vmlinux (the
// payload of a bzImage, unpacked on the host), a bzImage that unpacks itself,
// PVH, and multiboot 1. The memory map, the command line, the initrd and the
// address of the ACPI root pointer are handed over as each of them wants.
//
// Images come from the user of this program and may be anything. A file that
// is not a kernel, is cut short or lies about itself gives an error of one
// line that names the file; nothing here panics on it or allocates by a size
// that the file merely claims.
//
// The package knows guest memory, but not KVM: the State it returns is plain
// data for whoever sets the registers.
package boot
