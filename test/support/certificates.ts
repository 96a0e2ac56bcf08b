/** A certificate authority, a server's and a client's certificate and a PSK file, made with openssl in a directory. */
import { execFileSync } from "node:child_process";
import { writeFileSync } from "node:fs";
import { join } from "node:path";

export interface Certificates {
  /** Holds ca-cert.pem, server-*.pem, client-*.pem as libnbd and qemu expect them. */
  readonly directory: string;
  readonly psk: string;
  readonly pskKeyHex: string;
}

export function makeCertificates(directory: string): Certificates {
  const openssl = (...args: string[]) => execFileSync("openssl", args, { cwd: directory, stdio: "pipe" });
  const authority = (name: string) =>
    openssl(
      ...["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "3"],
      ...["-keyout", `${name}-key.pem`, "-out", `${name}-cert.pem`, "-subj", `/CN=csnap test ${name}`],
    );
  const issue = (ca: string, name: string, subject: string, names: string) => {
    writeFileSync(join(directory, `${name}.ext`), `subjectAltName=${names}\n`);
    openssl(
      ...[
        "req",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-keyout",
        `${name}-key.pem`,
      ],
      ...["-out", `${name}.csr`, "-subj", subject],
    );
    openssl(
      ...[
        "x509",
        "-req",
        "-in",
        `${name}.csr`,
        "-CA",
        `${ca}-cert.pem`,
        "-CAkey",
        `${ca}-key.pem`,
        "-days",
        "3",
      ],
      ...["-CAcreateserial", "-extfile", `${name}.ext`, "-out", `${name}-cert.pem`],
    );
  };
  authority("ca");
  authority("stranger");
  issue("ca", "server", "/CN=localhost", "DNS:localhost,IP:127.0.0.1");
  issue(
    "ca",
    "client",
    "/O=test/CN=host1",
    "DNS:host1.lan,email:root@host1.lan,URI:spiffe://lan/host1,IP:192.0.2.7",
  );
  issue("stranger", "foreign", "/CN=host1", "DNS:host1.lan");
  const pskKeyHex = "791e3f96ece45fc18d54c59e5ccbbdfb19d03c92a2b77aa986ef0a5c98734080";
  const psk = join(directory, "keys.psk");
  writeFileSync(psk, `# users\nalice:${pskKeyHex}\nbob:00112233445566778899aabbccddeeff\n`);
  return { directory, psk, pskKeyHex };
}
