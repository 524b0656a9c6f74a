{{/* Pieces that every pod of the chart has. */}}
{{- define "kara.podSecurity" -}}
runAsNonRoot: true
runAsUser: {{ .Values.worker.runAsUser }}
runAsGroup: {{ .Values.worker.runAsUser }}
fsGroup: {{ .Values.worker.runAsUser }}
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "kara.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{- define "kara.pullSecrets" -}}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
{{- range . }}
  - name: {{ . }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "kara.env" -}}
- name: KARA_CONFIG
  value: /etc/kara/config/kara.toml
{{- if .Values.etcd.existingSecret }}
- name: KARA_ETCD_USERNAME
  valueFrom:
    secretKeyRef: {name: {{ .Values.etcd.existingSecret }}, key: username}
- name: KARA_ETCD_PASSWORD
  value: file:/etc/kara/etcd/password
{{- end }}
{{- end -}}

{{/* What a client of the cluster needs: configuration, secrets, a place for its state. */}}
{{- define "kara.clientVolumeMounts" -}}
- {name: config, mountPath: /etc/kara/config, readOnly: true}
- {name: auth, mountPath: /etc/kara/auth, readOnly: true}
- {name: tmp, mountPath: /tmp}
{{- if .Values.tls.enabled }}
- {name: tls, mountPath: /etc/kara/tls, readOnly: true}
{{- end }}
{{- if .Values.etcd.existingSecret }}
- {name: etcd, mountPath: /etc/kara/etcd, readOnly: true}
{{- end }}
{{- if .Values.etcd.tlsSecret }}
- {name: etcd-tls, mountPath: /etc/kara/etcd-tls, readOnly: true}
{{- end }}
{{- end -}}

{{- define "kara.clientVolumes" -}}
- name: config
  configMap: {name: {{ include "kara.fullname" . }}}
- name: auth
  secret: {secretName: {{ include "kara.authSecret" . }}, defaultMode: 0440}
- name: tmp
  emptyDir: {sizeLimit: 256Mi}
{{- if .Values.tls.enabled }}
- name: tls
  secret: {secretName: {{ include "kara.tlsSecret" . }}, defaultMode: 0440}
{{- end }}
{{- if .Values.etcd.existingSecret }}
- name: etcd
  secret:
    secretName: {{ .Values.etcd.existingSecret }}
    defaultMode: 0440
    items: [{key: password, path: password}]
{{- end }}
{{- if .Values.etcd.tlsSecret }}
- name: etcd-tls
  secret: {secretName: {{ .Values.etcd.tlsSecret }}, defaultMode: 0440}
{{- end }}
{{- end -}}
