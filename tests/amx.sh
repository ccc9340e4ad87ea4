#!/bin/sh
# Runs int8 convolutions by Intel's tile instructions (AMX) on an emulated Xeon: sh tests/amx.sh [FOLDER]
# It needs Debian with g++ and apt, and builds Bochs 3.0 from Debian's sources, some minutes; it installs nothing:
# everything lies in FOLDER (0.3 GB). It fails unless all checks that tests/amx/checks.cpp makes are passed.
set -eu
cd "$(dirname "$0")/.."
root=$PWD
folder=$(realpath -m "${1:-build/amx}")
mkdir -p "$folder/lists/partial" "$folder/cache/archives/partial" "$folder/packages" "$folder/disk/isolinux"
cd "$folder"

if [ ! -x bochs/bochs ]; then
  echo "deb-src [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian trixie main" > sources.list
  options="-o Dir::Etc::sourcelist=$folder/sources.list -o Dir::Etc::sourceparts=- -o Dir::State::Lists=$folder/lists -o Dir::Cache=$folder/cache"
  apt-get $options update -qq
  apt-get $options source -qq --download-only bochs=3.0+dfsg-1 || [ -e bochs_3.0+dfsg.orig.tar.xz ]
  mkdir -p bochs
  tar -xf bochs_3.0+dfsg.orig.tar.xz -C bochs --strip-components=1
  # Where Bochs 3.0 differs from Intel's manual: the signed factor of TDPBUSD was taken as unsigned, STTILECFG was only
  # known with the bit VEX.W, and rows and bytes of the stored shapes were exchanged.
  sed -i '/^BX_CPP_INLINE Bit32u DPBDUS/,/^}/ { s/const Bit8u ybyte/const Bit8s ybyte/; s/Bit8u(y/Bit8s(y/g; s/Bit32u(xbyte/Bit32s(xbyte/ }' bochs/cpu/avx/amx.cc
  sed -i '/BX_IA_STTILECFG/s/ATTR_VEX_W1/ATTR_VEX_W0/' bochs/cpu/decoder/fetchdecode_opmap_avx.cc
  sed -i '/void BX_CPU_C::xsave_tilecfg_state(/,/^}/ { s/amx->tilecfg\[n\].rows/amx->tilecfg[n].ROWS/; s/amx->tilecfg\[n\].bytes_per_row/amx->tilecfg[n].rows/; s/amx->tilecfg\[n\].ROWS/amx->tilecfg[n].bytes_per_row/ }' bochs/cpu/xsave.cc
  (cd bochs && ./configure --enable-x86-64 --enable-cpu-level=6 --enable-avx --enable-evex --enable-amx --with-nogui \
    --enable-long-phy-address --disable-plugins --disable-docbook CXXFLAGS=-O2 CFLAGS=-O2 && make) > bochs.build 2>&1
fi
if [ ! -e root/usr/bin/xorriso ]; then
  (cd packages && apt-get download -q isolinux syslinux-common xorriso libisoburn1 libisofs6 libburn4 libjte2)
  for package in packages/*.deb; do dpkg -x "$package" root; done
fi

machine="-march=x86-64-v4 -mavx512vnni -mavx512bf16"
options="-O2 -std=c++17 -fno-math-errno -fno-trapping-math -Wno-psabi -ffreestanding -fno-exceptions -fno-rtti -fno-pic \
  -fno-asynchronous-unwind-tables -fno-threadsafe-statics -fno-stack-protector -fno-tree-loop-distribute-patterns \
  -I $root/yolox/kernels/csrc -I $root/tests/kernels/int8"
for source in yolox/kernels/csrc/int8/dense.cpp yolox/kernels/csrc/int8/dense_amx.cpp tests/amx/checks.cpp; do
  g++ $options $machine -mamx-tile -mamx-bf16 -mamx-int8 -c "$root/$source" -o "$(basename "$source" .cpp).o"
done
g++ $options $machine -DTILE_MODEL=1 -c "$root/tests/amx/model.cpp" -o model.o
gcc -c "$root/tests/amx/start.S" -o start.o
cat > link.ld <<'LINK'
ENTRY(_start)
SECTIONS {
  . = 0x200000;
  .text : { *(.multiboot) *(.text*) } .rodata : { *(.rodata*) } .data : { *(.data*) } .bss : { *(.bss*) *(COMMON) }
  /DISCARD/ : { *(.comment) *(.note*) *(.eh_frame*) }
}
LINK
ld -z noexecstack --no-warn-rwx-segments -T link.ld start.o checks.o model.o dense.o dense_amx.o -o checks64
objcopy -O elf32-i386 checks64 disk/checks

cp root/usr/lib/ISOLINUX/isolinux.bin disk/isolinux
for module in ldlinux mboot libcom32; do cp "root/usr/lib/syslinux/modules/bios/$module.c32" disk/isolinux; done
printf 'default checks\nprompt 0\nlabel checks\n kernel mboot.c32\n append /checks\n' > disk/isolinux/isolinux.cfg
LD_LIBRARY_PATH=root/usr/lib/x86_64-linux-gnu root/usr/bin/xorriso -as mkisofs -quiet -o checks.iso -b isolinux/isolinux.bin \
  -c isolinux/boot.cat -no-emul-boot -boot-load-size 4 -boot-info-table disk
cat > bochsrc <<SETTINGS
cpu: model=sapphire_rapids, count=1, ips=100000000, reset_on_triple_fault=0
memory: guest=256, host=256
romimage: file=$folder/bochs/bios/bios.bin-1.13.0
vgaromimage: file=$folder/bochs/bios/vgabios-cirrus.bin-1.13.0
vga: extension=none
pci: enabled=1, chipset=i440fx
ata0-master: type=cdrom, path=$folder/checks.iso, status=inserted
boot: cdrom
port_e9_hack: enabled=1
display_library: nogui
clock: sync=none
log: $folder/bochs.log
panic: action=fatal
error: action=report
info: action=ignore
SETTINGS
rm -f checks.iso.lock found
bochs/bochs -q -f bochsrc > found 2>&1 &
emulator=$!
for _ in $(seq 300); do
  grep -q "checks end" found && break
  kill -0 $emulator 2> /dev/null || break
  sleep 1
done
kill $emulator 2> /dev/null || true
sed -n '/checks begin/,/checks end/p' found
grep -q "model: 300 of 300" found && grep -q "AVX-512: 280 of 280" found
