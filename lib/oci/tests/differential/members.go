// Command members lists the members of tar archives as the engine sees them: read by archive/tar
// of Go, named as containerd names them before it unpacks them.
//
// It reads archives from its standard input, each after its length (32 bits, little endian), and
// writes a list for each, also after its length. A list is the byte 0 if the archive is rejected,
// otherwise the byte 1 and the members. Texts and counts have a length of 32 bits.
package main

import (
	"archive/tar"
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"io"
	"os"
	"path/filepath"
	"sort"
	"strings"
)

const xattr = "SCHILY.xattr."

func main() {
	in, out := bufio.NewReaderSize(os.Stdin, 1<<20), bufio.NewWriterSize(os.Stdout, 1<<20)
	defer out.Flush()
	var archive, list []byte
	for {
		var head [4]byte
		// The answers are written before the program waits.
		if in.Buffered() < len(head) {
			out.Flush()
		}
		if _, err := io.ReadFull(in, head[:]); err == io.EOF {
			return
		} else if err != nil {
			panic(err)
		}
		n := int(binary.LittleEndian.Uint32(head[:]))
		if cap(archive) < n {
			archive = make([]byte, n)
		}
		archive = archive[:n]
		if in.Buffered() < n {
			out.Flush()
		}
		if _, err := io.ReadFull(in, archive); err != nil {
			panic(err)
		}
		list = members(archive, list[:0])
		out.Write(binary.LittleEndian.AppendUint32(nil, uint32(len(list))))
		out.Write(list)
	}
}

// members appends the list of an archive.
func members(archive, list []byte) []byte {
	list = append(list, 1)
	// A layer is a stream, so the reader must not seek.
	reader := tar.NewReader(struct{ io.Reader }{bytes.NewReader(archive)})
	for {
		header, err := reader.Next()
		if err == io.EOF {
			return list
		}
		if err == nil {
			list, err = member(header, reader, list)
		}
		if err != nil {
			return append(list[:0], 0)
		}
	}
}

// member appends a member.
func member(header *tar.Header, content io.Reader, list []byte) ([]byte, error) {
	hash := sha256.New()
	size, err := io.Copy(hash, content)
	if err != nil {
		return nil, err
	}
	kind := header.Typeflag
	if kind == tar.TypeRegA {
		kind = tar.TypeReg
	}
	link := ""
	switch kind {
	case tar.TypeLink:
		link = below(header.Linkname)
	case tar.TypeSymlink:
		link = header.Linkname
	}
	list = append(list, kind)
	list = text(list, below(header.Name))
	list = text(list, link)
	list = binary.LittleEndian.AppendUint64(list, uint64(size))
	list = hash.Sum(list)
	var names []string
	if kind != tar.TypeXGlobalHeader {
		list = binary.LittleEndian.AppendUint64(list, uint64(header.Uid))
		list = binary.LittleEndian.AppendUint64(list, uint64(header.Gid))
		for key := range header.PAXRecords {
			if strings.HasPrefix(key, xattr) {
				names = append(names, key[len(xattr):])
			}
		}
	}
	sort.Strings(names)
	list = binary.LittleEndian.AppendUint32(list, uint32(len(names)))
	for _, name := range names {
		list = text(list, name)
	}
	return list, nil
}

// below returns a path below the root as containerd does: cleaned, then joined to the root.
func below(path string) string {
	return filepath.Join("/", filepath.Clean(path))[1:]
}

func text(list []byte, text string) []byte {
	list = binary.LittleEndian.AppendUint32(list, uint32(len(text)))
	return append(list, text...)
}
