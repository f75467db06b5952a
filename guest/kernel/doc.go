// Package kernel finds the kernel that a guest boots and the modules that go
// with it.
//
//	-k spec ──Resolve──▶ Kernel{Image, Vmlinux, ModuleDir, Config, ...}
//	   │ file, directory, build tree, host, name in the cache
//	   │ FILE.deb ──────────▶ extracted once into the cache
//	   └ debian[:6.12[:amd64]] ──Fetch (apt-get download)──▶ .deb ──▶ cache
//	Kernel.Modules("hv_netvsc") ──▶ [hv_vmbus, ..., hv_netvsc], each a plain .ko
//
// The cache is a directory of entries, one per kernel. An entry is built in a
// temporary directory and renamed into place, and files that come later
// (vmlinux, decompressed modules, the module index) are renamed into it one by
// one; so readers take no lock and never see half a file. Locks keep two
// writers from doing the same work twice.
//
// Nothing here installs a package, changes the state of the host's package
// manager, or loads anything: the package reads files and writes its cache. It
// knows nothing of KVM, of guest memory or of boot protocols; whoever can
// unpack a bzImage passes that in as Options.Unpacker.
package kernel
